"""What compression with training gains and costs on CIFAR-10: size, latency, accuracy, minutes.

    python -m benchmarks.compression [--data ../shared/data] [--keep DIR] [--output ...]

Runs the recipes of examples/compress, then `edgekit build --baseline` on each result and on the original. A
row's figures are from one certificate: candidate and original ran in turn on the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.zoo import board
from edgekit import files, host
from edgekit.profile import Budget

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "compress"
NEEDED = {
    "cifar10-jpeg": ("train_5000.tar", "test_2000.tar"),
    "cifar10-resnet20": ("resnet20.pt2", "resnet20.onnx", "resnet20-12fca82f.th", "resnet56-4bfd9763.th"),
}
RECIPES = {"prune": "pruned (30 % of inner channels), distilled", "student": "student ResNet-16, distilled"}
GIVEN_AWAY = {"student": 0.95}
"""The share of the original's accuracy that a build asks for, where the profile's 0.99 is more than the
recipe is about: a smaller network, chosen for speed, with its loss stated."""


def place(data: Path, folder: Path) -> None:
    """The example beside links to its data."""
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "data").mkdir(exist_ok=True)
    for sub, names in NEEDED.items():
        for name in names:
            if not (data / sub / name).is_file():
                raise SystemExit(f"no {data / sub / name}: name the data's folder with --data")
            link = folder / "data" / name
            link.unlink(missing_ok=True)
            link.symlink_to((data / sub / name).resolve())


def run(folder: Path, *words: str) -> dict[str, Any]:
    """An edgekit command's JSON, with its elapsed and CPU seconds."""
    environment = {**os.environ, "EDGEKIT_KEYS": str(folder / "keys"), "EDGEKIT_CACHE": str(folder / "cache")}
    command = [str(Path(sys.executable).parent / "edgekit"), *words, "--json"]
    begin, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["elapsed_s"] = round(time.monotonic() - begin, 1)
    answer["cpu_s"] = round(used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, 1)
    return answer


def compressed(folder: Path, name: str) -> dict[str, Any]:
    """The recipe's log; remembered in the folder for this very recipe, since it takes minutes."""
    recipe = hashlib.sha256((folder / f"{name}.toml").read_bytes()).hexdigest()
    known = folder / f"{name}-{recipe[:12]}.json"
    if not known.exists():
        sys.stderr.write(f"compress {name}\n")
        files.write_bytes(
            known,
            json.dumps(
                run(folder, "compress", f"{name}.toml", "-o", f"{name}.onnx", "--trust-source")
            ).encode(),
        )
    answer: dict[str, Any] = json.loads(known.read_bytes())
    return answer


def built(folder: Path, model: str, precision: str) -> dict[str, Any]:
    """One candidate's certificate beside the original."""
    sys.stderr.write(f"build {model} {precision}\n")
    words = ["build", model, "--baseline", "data/resnet20.onnx", "--profile", board()]
    words += ["--engine", "onnxruntime", "--precision", precision, "--effort", "quick", "--image", "imagenet"]
    words += ["--calibration", "data/train_5000.tar[0:300]", "--evaluate", "data/test_2000.tar"]
    words += ["-o", "out.edgekit", "--no-gate", "--no-robustness"]
    if ratio := GIVEN_AWAY.get(model.removesuffix(".onnx")):
        words += ["--accuracy-ratio", str(ratio)]
    return run(folder, *words)


def row(
    title: str, answer: dict[str, Any], log: dict[str, Any] | None, ratio: float, parameters: int, whole: int
) -> list[str]:
    """One line of the table. `ratio`: the share of accuracy asked for. `parameters`, `whole`: of the
    original, and bytes of its fp32 file."""
    certificate = answer["certificates"][0]
    accuracy = certificate["accuracy"]
    failed = [gate["gate"] for gate in certificate["gates"] if not gate["passed"]]
    return [
        title,
        f"{accuracy['value']:.4f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]",
        f"{certificate['mcnemar_p']:.2g}",
        f"{log['after']['parameters'] / parameters:.2f}" if log else "1.00",
        f"{certificate['size_bytes'] / whole:.2f}",
        f"{certificate['latency']['p50_ms'] / certificate['baseline_latency']['p50_ms']:.2f}",
        f"{ratio}: " + (f"fails {', '.join(failed)}" if failed else "passes"),
        f"{log['elapsed_s'] / 60:.1f} / {log['cpu_s'] / 60:.1f}" if log else "",
    ]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments.add_argument("--keep", type=Path, help="work here, and use what an earlier run trained here")
    results = ROOT / "benchmarks" / "results" / "compression.json"
    arguments.add_argument("--output", type=Path, default=results)
    chosen = arguments.parse_args()
    begin = time.monotonic()
    with nullcontext(chosen.keep) if chosen.keep else tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name).resolve()
        place(chosen.data, folder)
        logs = {recipe: compressed(folder, recipe) for recipe in RECIPES}
        answers = {
            (model, precision): built(folder, model, precision)
            for model in ("data/resnet20.onnx", *(f"{recipe}.onnx" for recipe in RECIPES))
            for precision in ("fp32", "int8")
        }
    whole = answers["data/resnet20.onnx", "fp32"]["certificates"][0]["size_bytes"]
    parameters = logs["prune"]["before"]["parameters"]
    titles = {"data/resnet20.onnx": "ResNet-20"} | {f"{k}.onnx": v for k, v in RECIPES.items()}
    rows = []
    for (model, precision), answer in answers.items():
        recipe = model.removesuffix(".onnx")
        ratio = GIVEN_AWAY.get(recipe, Budget().accuracy_ratio)
        rows.append(row(f"{titles[model]}, {precision}", answer, logs.get(recipe), ratio, parameters, whole))
    here = host.read()
    note = (
        "CIFAR-10 as JPEG, 5,000 training and 2,000 test pictures; accuracy with its 95 % interval, paired "
        "test against fp32 ResNet-20; latency at batch 1, interleaved with it; gate: the share of its "
        f"accuracy asked for (--accuracy-ratio). Teacher: ResNet-56. {here.cpu}, {here.cores} cores; "
        "minutes of training with one thread, on a machine that other work shared."
    )
    columns = ["onnxruntime", "accuracy", "p", "parameters", "size", "p50", "gate", "minutes / CPU minutes"]
    answer = {
        "table": {"columns": columns, "rows": rows, "note": note},
        "training": logs,
        "certificates": {f"{m} {p}": a["certificates"][0] for (m, p), a in answers.items()},
        "elapsed_s": round(time.monotonic() - begin, 1),
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(chosen.output, json.dumps(answer, indent=1).encode() + b"\n")
    sys.stderr.write(f"wrote {chosen.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
