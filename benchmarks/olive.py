"""edgekit beside Microsoft Olive: the same models, rows and quantization, each in its own environment.

    python -m benchmarks.olive [--task NAME] [--rounds N] [--output FILE]

Both make int8 for ONNX Runtime: calibrated for resnet20, at run time for MiniLM. Builds are timed in turn,
in fresh processes; both files then answer every evaluation row and run in turn in one process, through the
engine that edgekit's agent loads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantization import cpu_s, this_machine
from benchmarks.zoo import environment
from benchmarks.zoo.tasks import CACHE, TASKS, Task
from edgekit import backends, codec, files, host
from edgekit.backends import Recipe
from edgekit.build import measure, pipeline, worker
from edgekit.build.cache import Cache
from edgekit.build.certify import Context
from edgekit.build.metrics import Answers, paired_p
from edgekit.build.progress import Lines
from edgekit.cli._output import say
from edgekit.profile import Verify
from edgekit.runtimes._answers import unpack_outputs

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "olive.json"
SCRIPT = ROOT / "benchmarks" / "zoo" / "scripts" / "with_olive.py"
VERSION = "0.13.0"
PASSES = {
    "resnet20": ("int8", "OnnxStaticQuantization"),
    "MiniLM": ("int8-dynamic", "OnnxDynamicQuantization"),
}
"""Task to edgekit's precision and Olive's pass."""
NOISE = 1.05
"""Medians of two runs in turn repeat within this; the same file raced against itself differs as much."""
SIGNIFICANT = 0.05
"""Accuracies differ when a paired test on the same rows gives less than this."""


@dataclass
class Side:
    """One tool's file, and what making it took."""

    onnx: bytes = b""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def olive_environment() -> Path:
    """Olive pulls PyTorch; requests and datasets it needs without saying so. Same engine as edgekit's."""
    same = [f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "onnx")]
    wanted = ["torch==2.13.0", f"olive-ai=={VERSION}", "requests", "datasets", "huggingface_hub", *same]
    return environment(CACHE / "olive-env", wanted)


def options(recipe: Recipe) -> dict[str, Any]:
    """The recipe in Olive's words."""
    plain = {"per_channel": True, "reduce_range": bool(recipe.options["reduce_range"])}
    if recipe.precision == "int8-dynamic":
        return plain
    return {
        **plain,
        "quant_format": "QDQ",
        "activation_type": "uint8" if recipe.options["activation"] == "u8" else "int8",
        "calibrate_method": "MinMax",
    }


def built(task: Task, precision: str, rounds: int) -> tuple[Context, Recipe, dict[str, Side]]:
    """Both ways in turn."""
    profile = this_machine()
    context, rows = pipeline.prepare(task.request(profile), Cache(None), Lines(sys.stderr))
    target = next(one for one in profile.target if one.runtime == "onnxruntime")
    recipe = next(iter(backends.get("onnxruntime").recipes(precision, target, profile.calibration)))
    arrays = rows.inputs if recipe.needs_calibration else {}
    job = worker.Job("build", recipe, model=context.model, arrays=arrays)
    sides = {"edgekit": Side(), "Olive": Side()}
    python = olive_environment()
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as name:
            folder = Path(name)
            # Olive gets the file as it came; its own pre-processing is part of its pass.
            save: Any = np.savez
            save(folder / "rows.npz", **rows.inputs)
            _, wanted = PASSES[task.name]
            words = [str(python), str(SCRIPT), str(task.model), str(folder / "rows.npz"), name, wanted]
            words.append(json.dumps(options(recipe)))
            _timed(sides["Olive"], partial(_run, words, folder))
            sides["Olive"].onnx = (folder / "model.onnx").read_bytes()
        sides["edgekit"].onnx = _timed(sides["edgekit"], partial(worker.run, job))[1]["model.onnx"]
        taken = ", ".join(f"{name} {side.wall_s[-1]:.1f} s" for name, side in sides.items())
        say(f"{task.name}: round {number + 1} of {rounds}: {taken}")
    return context, recipe, sides


def _run(words: list[str], folder: Path) -> None:
    clean = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"Olive failed:\n{done.stderr.decode(errors='replace')[-2000:]}")


def _timed(side: Side, work: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result, used_s = cpu_s(work)
    side.cpu_s.append(used_s)
    side.wall_s.append(time.perf_counter() - begin)
    return result


def compared(task: Task, context: Context, recipe: Recipe, sides: dict[str, Side]) -> list[dict[str, Any]]:
    """Accuracy, latency, size and build time of both; latency from one race between the two files."""
    ours, theirs = sides["edgekit"], sides["Olive"]
    race, own = _measured(context, recipe, ours.onnx, theirs.onnx)
    other, foreign = _measured(context, recipe, theirs.onnx, context.model.onnx)
    mine, _ = _measured(context, recipe, ours.onnx, context.model.onnx)
    truth = context.evaluation.truth
    scores = [context.metric.score(Answers(seen, truth, seen)) for seen in (own, foreign)]
    mine_is, other_is = (score.interval.value for score in scores)
    chance = paired_p(context.metric, *scores)
    # A difference on these rows that resampling them turns round says nothing about either tool.
    same = 1.0 if chance < SIGNIFICANT else math.inf
    figures = (
        (f"accuracy (p = {chance:.2f})", mine_is, other_is, True, same),
        ("p50 ms", race.latency.p50_ms, race.baseline_latency.p50_ms, False, NOISE),
        ("x fp32", _speedup(mine), _speedup(other), True, NOISE),
        ("bytes", len(ours.onnx), len(theirs.onnx), False, 1.0),
        ("peak RSS MiB", mine.peak_rss_mib, other.peak_rss_mib, False, NOISE),
        ("build, s", statistics.median(ours.wall_s), statistics.median(theirs.wall_s), False, 1.0),
        ("build, CPU s", statistics.median(ours.cpu_s), statistics.median(theirs.cpu_s), False, 1.0),
    )
    return [
        {
            "task": task.name,
            "recipe": recipe.name,
            "figure": name,
            "edgekit": a,
            "Olive": b,
            "no_worse": a * noise >= b if higher else a <= b * noise,
        }
        for name, a, b, higher, noise in figures
    ]


def _speedup(seen: measure.Measured) -> float:
    return seen.baseline_latency.p50_ms / seen.latency.p50_ms


def _measured(
    context: Context, recipe: Recipe, candidate: bytes, baseline: bytes
) -> tuple[measure.Measured, dict[str, Any]]:
    todo = measure.Plan(Verify(), classify=False, baseline_options=recipe.runtime_options)
    both = {"candidate/model.onnx": candidate, "baseline/model.onnx": baseline}
    arrays = {f"input/{name}": array for name, array in context.evaluation.inputs.items()}
    result, made = worker.run(worker.Job("measure", recipe, measure=todo, files=both, arrays=arrays))
    seen = codec.from_plain(measure.Measured, result["measured"], what="measurement")
    return seen, dict(unpack_outputs(seen.outputs, made))


def table(found: list[dict[str, Any]], note: str) -> dict[str, Any]:
    def text(value: float) -> str:
        return f"{value:,.0f}" if value > 1000 else f"{value:.4g}"

    rows = [
        [
            one["task"],
            one["recipe"],
            one["figure"],
            text(one["edgekit"]),
            text(one["Olive"]),
            "" if one["no_worse"] else "**worse**",
        ]
        for one in found
    ]
    return {"columns": ["model", "candidate", "", "edgekit", "Olive", ""], "rows": rows, "note": note}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--task", action="append", choices=PASSES, help="only this; may be repeated")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--output", type=Path, default=OUTPUT)
    chosen = arguments.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for name in chosen.task or PASSES:
        task = TASKS[name]()
        found += compared(task, *built(task, PASSES[name][0], chosen.rounds))
    here = host.read()
    note = (
        f"Olive {VERSION}, onnxruntime {metadata.version('onnxruntime')} on both sides; builds: medians of "
        f"{chosen.rounds} in turn, whole processes; p50: both files in turn in one process, one thread; "
        f"timings within {NOISE - 1:.0%} count as equal, accuracies unless a paired test (p: McNemar "
        f"or bootstrap) tells them apart. {here.cpu}."
    )
    answer = {"table": table(found, note), "figures": found, "machine": dataclasses.asdict(here)}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(chosen.output, json.dumps(answer, indent=1).encode() + b"\n")
    say(f"wrote {chosen.output}")
    worse = [f"{one['task']}: {one['figure']}" for one in found if not one["no_worse"]]
    for line in worse:
        say(f"worse than Olive: {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
