"""Every row of a data set through a session, one at a time as on the device, and the answers as files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.errors import DataError
from edgekit.runtimes._base import Array, Session

MIB = 1024 * 1024
MAX_OUTPUT_MIB = 2048


def answer(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every output for every row, (rows, ...), one row per run as on the device.

    Raises DataError when the answers would not fit into memory.
    """
    rows = len(next(iter(inputs.values())))
    whole: dict[str, Array] = {}
    for i in range(rows):
        outputs = session.run({name: array[i : i + 1] for name, array in inputs.items()})
        if not whole:
            whole = {name: _room(name, array, rows) for name, array in outputs.items()}
        for name, array in outputs.items():
            if array.shape != (1, *whole[name].shape[1:]):
                raise DataError(
                    f"output {name!r} changes its shape from row to row: {list(whole[name].shape[1:])}, then "
                    f"{list(array.shape)}",
                    "export the model with outputs of a fixed size",
                )
            whole[name][i] = array[0]
    return whole


def pack_outputs(outputs: Mapping[str, Array]) -> dict[str, bytes]:
    """Arrays as "answers/<i>.npy"; the names travel beside them, in this order."""
    files = {}
    for i, array in enumerate(outputs.values()):
        with io.BytesIO() as buffer:
            np.save(buffer, array, allow_pickle=False)
            files[f"answers/{i}.npy"] = buffer.getvalue()
    return files


def unpack_outputs(names: Sequence[str], files: Mapping[str, bytes]) -> dict[str, Array]:
    """The inverse of `pack_outputs`."""
    arrays = (np.load(io.BytesIO(files[f"answers/{i}.npy"]), allow_pickle=False) for i, _ in enumerate(names))
    return dict(zip(names, arrays, strict=True))


def _room(name: str, first: Array, rows: int) -> Array:
    if first.nbytes * rows > MAX_OUTPUT_MIB * MIB:
        raise DataError(
            f"the answers to {rows} rows are {first.nbytes * rows // MIB} MiB in output {name!r}",
            "evaluate on fewer rows: FILE.npz[0:200]",
        )
    return np.empty((rows, *first.shape[1:]), first.dtype)
