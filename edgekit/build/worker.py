"""One job in a process of its own: a crash, a hang or a greedy library costs one candidate, not the build.

`run` starts `python -m edgekit.build.worker FOLDER` and waits. The folder holds `job.json`, `files/` and
`arrays.npz`; the child leaves `result.json` and `out/`. Four kinds of job:

    build      a backend makes a candidate's files
    measure    the candidate runs through `edgekit.runtimes`, as on the device, beside the fp32 baseline
    answer     both answer other rows, without figures
    rank       each layer is quantized alone, and the damage is measured
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import backends, codec
from edgekit.build import measure, sensitivity
from edgekit.errors import EdgekitError, EngineError
from edgekit.files import storage_fault

TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Job:
    kind: str
    recipe: backends.Recipe
    model: backends.SourceModel | None = None
    measure: measure.Plan | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """measure: "candidate/..." and "baseline/..."; rank: "quantized.onnx" """
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def run(job: Job, timeout_s: float = TIMEOUT_S) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The child's result and files. Raises EngineError, in one line, whatever happened to the child."""
    if job.kind == "build" and _is_isolated(job.recipe.engine):
        return {}, _build_here(job)
    with _scratch() as folder:
        _write(folder, job)
        # -P: a file in the current folder must not stand in for a library.
        command = [sys.executable, "-P", "-m", __name__, str(folder)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{job.recipe.name}: {job.kind} took more than {timeout_s:.0f} s") from None
        result_file = folder / "result.json"
        if done.returncode or not result_file.exists():
            raise EngineError(f"{job.recipe.name}: {job.kind} {_end(done.returncode, done.stderr)}")
        result: dict[str, Any] = json.loads(result_file.read_bytes())
        if "error" in result:
            raise EngineError(result["error"], result["hint"])
        return result, _read_tree(folder / "out")


def _is_isolated(engine: str) -> bool:
    return engine in backends.names() and isinstance(backends.get(engine), backends.Isolated)


def _build_here(job: Job) -> dict[str, bytes]:
    if job.model is None:
        raise EngineError(f"{job.recipe.name}: build needs a model")
    try:
        return backends.get(job.recipe.engine).build(job.model, job.recipe, job.arrays)
    except EdgekitError:
        raise
    except Exception as exc:  # as a worker would say it
        raise EngineError(f"{job.recipe.name}: build failed: {type(exc).__name__}: {exc}") from None


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for one job. Raises SystemFault when the disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-job-") as name:
            yield Path(name)
    except OSError as exc:
        raise storage_fault(Path(exc.filename or tempfile.gettempdir()), exc) from None


def _end(code: int, stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}{last}"


def _write(folder: Path, job: Job) -> None:
    described = {"kind": job.kind, "recipe": job.recipe, "measure": job.measure}
    if job.model:
        described["ports"] = {"inputs": job.model.inputs, "outputs": job.model.outputs}
        (folder / "model.onnx").write_bytes(job.model.onnx)
    (folder / "job.json").write_bytes(codec.to_json(described))
    _write_tree(folder / "files", job.files)
    names = list(job.arrays)
    (folder / "arrays.json").write_text(json.dumps(names))
    np.savez(folder / "arrays.npz", *job.arrays.values())


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _read_tree(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _child(folder: Path) -> dict[str, Any]:
    """What runs in the child; the result is plain JSON."""
    job = json.loads((folder / "job.json").read_bytes())
    recipe = codec.from_plain(backends.Recipe, job["recipe"], what="recipe")
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        names = json.loads((folder / "arrays.json").read_text())
        arrays = {name: file[f"arr_{i}"] for i, name in enumerate(names)}
    if job["kind"] == "build":
        made = backends.get(recipe.engine).build(_model(folder, job), recipe, arrays)
        _write_tree(folder / "out", made)
        return {}
    files = _read_tree(folder / "files")
    if job["kind"] == "rank":
        ranking = sensitivity.rank(_model(folder, job), files["quantized.onnx"], arrays)
        return dict(codec.to_plain(ranking))
    plan = codec.from_plain(measure.Plan, job["measure"], what="measure")
    if job["kind"] == "answer":
        outputs, answers = measure.answers(recipe, plan, files, arrays)
        _write_tree(folder / "out", answers)
        return {"outputs": list(outputs)}
    measured, golden = measure.measure(recipe, plan, files, arrays)
    _write_tree(folder / "out", golden)
    return {"measured": codec.to_plain(measured)}


def _model(folder: Path, job: Mapping[str, Any]) -> backends.SourceModel:
    ports = codec.from_plain(_Ports, job["ports"], what="ports")
    return backends.SourceModel((folder / "model.onnx").read_bytes(), ports.inputs, ports.outputs)


@dataclass(frozen=True)
class _Ports:
    inputs: tuple[backends.TensorSpec, ...]
    outputs: tuple[backends.TensorSpec, ...]


def main() -> int:
    folder = Path(sys.argv[1])
    try:
        result = _child(folder)
    except EdgekitError as exc:
        result = {"error": exc.message, "hint": exc.hint}
    (folder / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
