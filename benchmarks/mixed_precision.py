"""A detector that int8 hurts, saved by mixed precision: FastestDet on both engines of this machine's profile.

    python -m benchmarks.mixed_precision [--output benchmarks/results/mixed_precision.json]

Each engine is asked for a little more than its int8 recipes reach. Nothing is refused, so that the table has
figures on every machine; its last column is what the gates, speed included, say of each candidate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.zoo import board, fastestdet
from edgekit import files, host, profile
from edgekit.build import pipeline
from edgekit.build.cache import Cache
from edgekit.build.choose import Outcome
from edgekit.build.progress import Lines
from edgekit.build.request import Request
from edgekit.cli._output import say

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "fastestdet"
DECODER = f"{ROOT / 'benchmarks' / 'zoo' / 'fastestdet.py'}:boxes"
WANTED = {"openvino": 0.97, "onnxruntime": 0.96}
"""Share of fp32's boxes to keep."""


def run(engine: str, rows: Path) -> pipeline.Report:
    """One engine's build of int8."""
    plain = profile.get(board())
    budget = dataclasses.replace(plain.budget, accuracy_ratio=WANTED[engine])
    strict = dataclasses.replace(plain, budget=budget)
    request = Request(
        model=PHOTOS / "FastestDet.onnx",
        profiles=(strict,),
        calibration=str(rows / "calibration.npz"),
        evaluate=str(rows / "evaluation.npz"),
        metric="f1-agreement",
        decode=DECODER,
        precisions=("int8",),
        engines=(engine,),
        robustness=False,
        gate=False,
    )
    return pipeline.build(request, Cache(None), Lines(sys.stderr))


def line(engine: str, outcome: Outcome) -> list[str]:
    seen, recipe = outcome.figures, outcome.candidate.recipe
    if seen is None:
        raise ValueError(f"{recipe.name} was not measured")
    given_back = len(str(recipe.options.get("keep", "")).split()) if "keep" in recipe.options else 0
    value = seen.accuracy
    return [
        engine,
        recipe.name.removeprefix(f"{engine}.").split("-keep")[0],
        str(given_back),
        f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]",
        f"{seen.speedup:.2f}",
        f"{seen.size_bytes / 1000:.0f}",
        outcome.problem or ("ships" if outcome.kept else "passes"),
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    target = ROOT / "benchmarks" / "results" / "mixed_precision.json"
    arguments.add_argument("--output", type=Path, default=target)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as name:
        fastestdet.main(PHOTOS, Path(name))
        made = {engine: run(engine, Path(name)) for engine in WANTED}
    here = host.read()
    rows = [line(engine, o) for engine, found in made.items() for o in found.outcomes if o.figures]
    wanted = ", ".join(f"{share:g} on {engine}" for engine, share in WANTED.items())
    note = (
        "FastestDet: agreement with fp32's boxes on 125 crops, calibrated on 80 others of the same photos; "
        f"asked for: {wanted}. x fp32: medians of runs in turn on the same engine, one thread. {here.cpu}."
    )
    columns = ["engine", "int8", "layers in fp32", "F1 [95 %]", "x fp32", "kB", "gates"]
    answer = {
        "table": {"columns": columns, "rows": rows, "note": note},
    }
    files.write_bytes(chosen.output, json.dumps(answer, indent=1).encode() + b"\n")
    say(f"wrote {chosen.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
