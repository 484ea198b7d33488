"""A user's own function, as "FILE.py:FUNCTION", run in a child process without network, bounded in memory.

def my_metric(outputs, truth, reference):      # dicts of arrays (rows, ...); truth may be None
    return scores                              # (rows,): one figure per row, higher is better
def my_decoder(outputs):
    return {"boxes": boxes}                    # new outputs, (rows, ...)
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import toolenv
from edgekit.build.metrics import Answers
from edgekit.errors import DataError, EngineError, InputError

Array = NDArray[Any]


def digest(spec: str) -> bytes:
    """The function's source: what a cached result depends on."""
    return _file(spec)[0].read_bytes()


def decode(spec: str, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs as the function turns them. Raises DataError with the function's own words."""
    return _call(spec, [outputs])


def rows(spec: str) -> Callable[[Answers], NDArray[np.float64]]:
    """A metric's `rows`: (rows, 1) from the function's figure per row."""
    _file(spec)

    def score(answers: Answers) -> NDArray[np.float64]:
        truth = {} if answers.truth is None else {"truth": answers.truth}
        values = next(iter(_call(spec, [answers.outputs, truth, answers.reference]).values()))
        if values.ndim != 1 or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            got = f"{values.dtype} of shape {list(values.shape)}"
            raise DataError(f"{spec}: returned {got}, not one finite figure per row")
        return values.astype(np.float64)[:, None]

    return score


def _file(spec: str) -> tuple[Path, str]:
    name, _, function = spec.rpartition(":")
    path = Path(name)
    if not path.is_file() or not function.isidentifier():
        raise InputError(f"{spec!r} is not FILE.py:FUNCTION", "check the path and the function's name")
    return path, function


def _call(spec: str, groups: list[Mapping[str, Array]]) -> dict[str, Array]:
    path, function = _file(spec)
    job = {"function": function, "names": [list(group) for group in groups]}
    arrays = [array for group in groups for array in group.values()]
    with io.BytesIO() as buffer:
        np.savez(buffer, *arrays)
        files: dict[str, bytes | Path] = {"arrays.npz": buffer.getvalue(), "function.py": path}
    try:
        result, out = toolenv.run(toolenv.OWN, "call_function", job, files)
    except EngineError as exc:
        raise DataError(f"{spec}: {exc.message}", exc.hint) from None
    with np.load(io.BytesIO(out["result.npz"]), allow_pickle=False) as file:
        return {name: file[f"arr_{i}"] for i, name in enumerate(result["names"])}
