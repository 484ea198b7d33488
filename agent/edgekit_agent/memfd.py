"""Plaintext in memory that nobody can change: sealed memfds, made by the supervisor, mapped by serving."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence

from edgekit.errors import FormatError, SystemFault

COPIES, SPARE_MIB = 3.0, 32.0
"""Memory of a loaded model per byte of its files (a network of 16.9 MB added 48.8 MiB to an onnxruntime
process), and room for a run."""
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, data: bytes | memoryview) -> int:
    """A sealed, close-on-exec memfd that holds `data`; the caller closes it. Raises SystemFault."""
    try:
        descriptor = os.memfd_create(name[-200:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as exc:
        raise SystemFault(f"cannot create memory for {name!r}: {exc.strerror}") from None
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as exc:
        os.close(descriptor)
        hint = "free memory, or choose a smaller model"
        raise SystemFault(f"cannot hold {name!r} in memory: {exc.strerror}", hint) from None
    return descriptor


def create_all(files: Mapping[str, bytes | memoryview]) -> dict[str, int]:
    """One memfd per file, in order; none stays open when one fails."""
    made: dict[str, int] = {}
    try:
        for name, data in files.items():
            made[name] = create(name, data)
    except BaseException:
        close_all(list(made.values()))
        raise
    return made


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def forecast_mib(descriptors: Iterable[int]) -> float:
    """About what loading a model of these files takes, in MiB."""
    return COPIES * sum(os.fstat(one).st_size for one in descriptors) / (1 << 20) + SPARE_MIB


def read(descriptor: int) -> memoryview:
    """Map a sealed memfd read-only. The mapping lives as long as the view; the descriptor may be closed.

    Raises FormatError for anything that is not a memfd with all seals: it could change under the reader.
    """
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    if not sealed:
        raise FormatError("a model file is not sealed memory")
    size = os.fstat(descriptor).st_size
    if size == 0:
        return memoryview(b"")
    # Private: Linux before 6.7 refuses shared mappings of write-sealed files, even read-only ones.
    return memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
