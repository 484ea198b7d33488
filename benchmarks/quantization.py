"""Every engine and precision on five real tasks: accuracy, speed, size, memory, and what a build costs.

    python -m benchmarks.quantization [--task NAME] [--engine NAME] [--quick] [--output FILE]

One `edgekit build` per task tries everything that this machine's kind of CPU can run, each candidate beside
fp32 on its own engine. Then the library behind each recipe is called by hand (zoo/scripts/by_hand.py) in
turn with edgekit's own build job, in fresh processes, and their CPU seconds are compared. `checks` says which
of the builder's promises the figures keep.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.zoo.tasks import TASKS, Task
from edgekit import codec, files, host, profile, toolenv
from edgekit.backends import Recipe
from edgekit.build import choose, data, gates, pipeline, worker
from edgekit.build.cache import Cache
from edgekit.build.choose import Outcome
from edgekit.build.progress import Lines
from edgekit.cli._output import say
from edgekit.errors import EngineError

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "quantization.json"
BY_HAND = ROOT / "benchmarks" / "zoo" / "scripts" / "by_hand.py"
T = TypeVar("T")
INTEGERS = ("int8", "int8-dynamic", "int8-weights", "int4-weights")
PRECISIONS: dict[str, tuple[profile.Precision, ...]] = {
    "openvino": (*INTEGERS, "fp16", "fp32"),  # type: ignore[dict-item]
    "litert": (*INTEGERS, "int16x8", "fp16", "fp32"),  # type: ignore[dict-item]
    "onnxruntime": (*INTEGERS, "fp16", "fp32"),  # type: ignore[dict-item]
    "tvm": ("fp32",),
}
"""In order of preference, where figures tie."""
BUILD_ROUNDS = 3
SLOW_S = 40.0
"""A build that takes longer is compared once."""
SAME_MODEL = 0.005
OVERHEAD = 1.2
"""Most that edgekit's build job may cost, times the library by hand."""
SMALLER = 3.5
"""Least that int8 must make smaller, where weights dominate."""


def this_machine() -> profile.Profile:
    """A profile of this CPU that offers every engine and precision."""
    here = host.read()
    saturates = host.saturates(here)
    options: dict[str, dict[str, Any]] = {name: {"intra_threads": 1} for name in PRECISIONS}
    options["openvino"]["INFERENCE_PRECISION_HINT"] = "f32"
    if saturates:
        options["onnxruntime"]["session.x64quantprecision"] = "0"  # 7-bit weights need no exact kernels
    options["tvm"].update(cpu="x86-64-v3", trials=0)
    return profile.Profile(
        name="this-machine",
        description=f"every engine on {here.cpu}",
        hardware=profile.Hardware("x86_64", here.isa, here.cores, here.ram_mib, 65536, cpu=here.cpu),
        target=tuple(
            profile.Target(name, wanted, activation="u8", reduce_range=saturates, options=options[name])
            for name, wanted in PRECISIONS.items()
        ),
    )


def built(task: Task, engines: tuple[str, ...]) -> pipeline.Report:
    """Everything tried, nothing refused; `choose` still says what would ship."""
    plain = task.request(this_machine())
    request = dataclasses.replace(plain, engines=engines, gate=False, robustness=False, jobs=1)
    return pipeline.build(request, Cache(None), Lines(sys.stderr))


def build_ratio(recipe: Recipe, report: pipeline.Report, rows: data.Data, rounds: int) -> float | None:
    """CPU seconds of edgekit's job over the library's by hand; None where no library makes this file.

    Raises EngineError when the job fails.
    """
    own_way = recipe.options.get("by") == "dq" or recipe.engine == "tvm" or recipe.options.get("keep")
    if own_way or (recipe.precision == "fp32" and recipe.engine == "onnxruntime"):
        return None
    model = report.context.model
    arrays = rows.inputs if recipe.needs_calibration else {}
    job = worker.Job("build", recipe, model=model, arrays=arrays)
    python = toolenv.ensure("litert") if recipe.engine == "litert" else Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.onnx)
        save: Any = np.savez
        save(folder / "rows.npz", **rows.inputs)
        words = [str(python), str(BY_HAND), recipe.engine, recipe.precision, json.dumps(recipe.options)]
        words += [str(folder / "model.onnx"), str(folder / "rows.npz"), str(folder / "out")]
        hand: list[float] = []
        own: list[float] = []
        while len(own) < rounds and not (own and own[0] > SLOW_S):
            hand.append(cpu_s(partial(_by_hand, words, folder))[1])
            own.append(cpu_s(partial(worker.run, job))[1])
    return statistics.median(own) / statistics.median(hand)


def _by_hand(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise EngineError(f"by hand: {' '.join(words[2:5])}: {''.join(last)}")


def cpu_s(work: Callable[[], T]) -> tuple[T, float]:
    """The result, and user and system seconds of this process and of the children it waits for."""

    def used() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    begin = used()
    result = work()
    return result, used() - begin


def lines(task: Task, report: pipeline.Report, ratios: dict[str, float | None]) -> Iterable[dict[str, Any]]:
    """One per candidate that could be measured, as plain figures."""
    whole: dict[str, int] = {}
    for outcome in report.outcomes:
        if outcome.figures and outcome.candidate.recipe.precision == "fp32":
            whole[outcome.candidate.recipe.engine] = outcome.figures.size_bytes
    source_bytes = len(report.context.model.onnx)
    for outcome in report.outcomes:
        if (seen := outcome.figures) is None:
            continue
        recipe = outcome.candidate.recipe
        yield {
            "task": task.name,
            "engine": recipe.engine,
            "candidate": recipe.name,
            "precision": recipe.precision,
            "metric": report.context.metric.name,
            "accuracy": codec.to_plain(seen.accuracy),
            "baseline_accuracy": codec.to_plain(seen.baseline_accuracy),
            "p50_ms": seen.latency.p50_ms,
            "speedup": seen.speedup,
            "size_bytes": seen.size_bytes,
            "times_smaller": whole.get(recipe.engine, source_bytes) / seen.size_bytes,
            "peak_rss_mib": seen.peak_rss_mib,
            "build_ratio": ratios.get(recipe.name),
            "passes": not outcome.problem,
            "problem": outcome.problem,
            "ships": outcome.kept,
        }


def checks(task: Task, rows: list[dict[str, Any]], *, vnni: bool) -> Iterable[dict[str, Any]]:
    """What the builder promises, held against what was measured."""
    for row in rows:
        if not row["ships"]:
            continue
        low = row["baseline_accuracy"]["low"]
        wanted = min(0.99 * row["baseline_accuracy"]["value"], low)
        name = f"{task.name}: {row['candidate']} ships"
        yield _check(f"{name}: accuracy", row["accuracy"]["value"], wanted, at_least=True)
        yield _check(f"{name}: x fp32, or a tie", row["speedup"], 1 - gates.SPEED_TOLERANCE, at_least=True)
        if task.least_speedup > 1:
            found = _check(f"{name}: x fp32 with VNNI", row["speedup"], task.least_speedup, at_least=True)
            yield found if vnni or found["kept"] else {**found, "kept": None}
        if task.weights_dominate:
            yield _check(f"{name}: times smaller", row["times_smaller"], SMALLER, at_least=True)
    if known := [row for row in rows if row["build_ratio"] and row["precision"] in INTEGERS]:
        worst = max(known, key=lambda row: row["build_ratio"])
        name = f"{task.name}: dearest build, {worst['candidate']}, times the library by hand"
        yield _check(name, worst["build_ratio"], OVERHEAD, at_least=False)


def _check(name: str, value: float, limit: float, *, at_least: bool) -> dict[str, Any]:
    kept = value >= limit if at_least else value <= limit
    return {"check": name, "value": value, "limit": limit, "at_least": at_least, "kept": kept}


def table(rows: list[dict[str, Any]], note: str) -> dict[str, Any]:
    """What docs/check.py turns into Markdown; what ships is in bold."""
    columns = ["task", "candidate", "accuracy [95 %]", "ms", "x fp32", "kB", "x smaller", "MiB", "x build"]
    cells = []
    for row in rows:
        value, ratio = row["accuracy"], row["build_ratio"]
        name = f"**{row['candidate']}**" if row["ships"] else row["candidate"]
        cells.append(
            [
                row["task"],
                name if row["passes"] or row["ships"] else f"{name} (refused)",
                f"{value['value']:.4f} [{value['low']:.3f}, {value['high']:.3f}]",
                f"{row['p50_ms']:.3f}",
                f"{row['speedup']:.2f}",
                f"{row['size_bytes'] / 1000:.1f}",
                f"{row['times_smaller']:.2f}",
                f"{row['peak_rss_mib']:.0f}",
                f"{ratio:.2f}" if ratio else "",
            ]
        )
    return {"columns": columns, "rows": cells, "note": note}


def checks_table(found: list[dict[str, Any]]) -> dict[str, Any]:
    words = {True: "kept", False: "**not kept**", None: "not reached, and no VNNI here"}
    rows = [
        [
            one["check"],
            f"{one['value']:.3f}",
            f"{'>=' if one['at_least'] else '<='} {one['limit']:.3f}",
            words[one["kept"]],
        ]
        for one in found
    ]
    return {"columns": ["promise", "measured", "limit", ""], "rows": rows, "note": ""}


def measured(task: Task, engines: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    report = built(task, engines)
    reference = next(outcome.figures for outcome in report.outcomes if outcome.figures)
    if abs(reference.baseline_accuracy.value - task.known) > SAME_MODEL:
        raise SystemExit(f"{task.name}: fp32 scores {reference.baseline_accuracy.value}, known: {task.known}")
    _, rows = pipeline.prepare(report.request, Cache(None), Lines(sys.stderr))
    ratios: dict[str, float | None] = {}
    for outcome in report.outcomes:
        recipe = outcome.candidate.recipe
        if _worth_timing(outcome):
            ratios[recipe.name] = build_ratio(recipe, report, rows, rounds)
            if ratio := ratios[recipe.name]:
                say(f"{task.name}: {recipe.name}: build {ratio:.2f} x the library by hand")
    return list(lines(task, report, ratios))


def _worth_timing(outcome: Outcome) -> bool:
    return outcome.figures is not None and outcome.candidate.recipe.precision in (*INTEGERS, "fp16")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--task", action="append", choices=TASKS, help="only this; may be repeated")
    arguments.add_argument("--engine", action="append", choices=PRECISIONS, help="only this; may be repeated")
    arguments.add_argument("--quick", action="store_true", help="builds are compared once")
    arguments.add_argument("--output", type=Path, default=OUTPUT)
    chosen = arguments.parse_args()
    here = host.read()
    vnni = not host.saturates(here)
    rounds = 1 if chosen.quick else BUILD_ROUNDS
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    (ROOT / ".cache" / "zoo").mkdir(parents=True, exist_ok=True)
    if chosen.task and chosen.output.exists():
        # The others' figures stay, if they are this machine's.
        before = json.loads(chosen.output.read_bytes())
        if before["machine"]["cpu"] == here.cpu and before["machine"]["isa"] == list(here.isa):
            rows = [one for one in before["candidates"] if one["task"] not in chosen.task]
            found = [one for one in before["promises"] if one["task"] not in chosen.task]
    for name in chosen.task or TASKS:
        task = TASKS[name]()
        say(f"task {name}")
        own = measured(task, tuple(chosen.engine or ()), rounds)
        rows += own
        found += [{"task": name, **one} for one in checks(task, own, vnni=vnni)]
    order = list(TASKS)
    rows.sort(key=lambda row: order.index(row["task"]))
    found.sort(key=lambda one: order.index(one["task"]))
    note = (
        "Batch 1, one thread, each candidate in turn with fp32 on its own engine; ms: median. x smaller: "
        "than that engine's fp32 file. MiB: peak memory of a process that serves it. x build: CPU seconds of "
        "edgekit's build job over the library called by hand. Bold ships: fastest that passes every gate; "
        f"ties within {choose.TIE - 1:.0%} go by preference. fastestdet: agreement with fp32's boxes; "
        "MiniLM: rank correlation on 1,379 pairs of STS-B. "
        f"{here.cpu}, {'with' if vnni else 'without'} VNNI."
    )
    packages = ("onnxruntime", "onnx", "openvino", "nncf", "numpy")
    answer = {
        "table": table(rows, note),
        "checks": checks_table(found),
        "candidates": rows,
        "promises": found,
        "machine": dataclasses.asdict(here),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(chosen.output, json.dumps(answer, indent=1).encode() + b"\n")
    say(f"wrote {chosen.output}")
    broken = [one["check"] for one in found if one["kept"] is False]
    for name in broken:
        say(f"not kept: {name}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
