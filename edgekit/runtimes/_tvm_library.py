"""Machine code from memory: TVM's runtime once per process, a compiled model per session."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtimes._base import Array

_NAME = "tvm"
_ALIGNMENT = 64
"""Bytes; TVM's kAllocAlignment, which its kernels may rely on."""
_BIG_CORES = 1  # tvm::runtime::threading::ThreadGroup::kBig
_loads = itertools.count(1)
_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}
"""The one runtime of this process, by the digest of its file."""


def quiet() -> None:
    """Keep the library from pinning the calling thread to a core and from building helpers for PyTorch."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")


def load_runtime(data: bytes | memoryview, digest: str) -> None:
    """Make TVM's functions known to apache-tvm-ffi. Raises EngineError, OSError.

    They register themselves under fixed names: a second build of the runtime in one process would
    replace functions that loaded models still call.
    """
    with _lock:
        if digest in _loaded:
            return
        if _loaded:
            raise EngineError(
                f"{_NAME}: this process holds another build of TVM's runtime", "restart it to change over"
            )
        with _in_memory(data) as path:
            _loaded[digest] = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


def load_module(library: Any, data: bytes | memoryview) -> Any:
    """The executable inside a compiled model; unloaded when the last reference goes."""
    load = library.get_global_func("ffi.Module.load_from_file.so")
    with _in_memory(data) as path:
        return load(path, "so")


def limit_threads(library: Any, count: int) -> None:
    """For kernels that the calling thread starts."""
    library.get_global_func("runtime.config_threadpool")(_BIG_CORES, count)


def aligned(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """An uninitialised array whose first element lies where TVM's kernels like it."""
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def words(exc: BaseException) -> str:
    """The first line that says something; native tracebacks follow it."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return next((line for line in lines if line), type(exc).__name__)


@contextmanager
def _in_memory(data: bytes | memoryview) -> Iterator[str]:
    """A path to `data` in anonymous memory. What is mapped from it stays when the path goes.

    The dynamic linker knows libraries by path: a path that an earlier library had would give that
    library again, whatever lies there now. Hence each load spells its own ("/." and "/" mean nothing
    and write a number in binary).
    """
    try:
        fd = os.memfd_create(f"edgekit-{_NAME}", os.MFD_CLOEXEC)
    except OSError as exc:
        raise EngineError(f"{_NAME}: no memory file for the model: {exc.strerror}") from None
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        number = "".join("/." if bit == "1" else "/" for bit in f"{next(_loads):b}")
        yield f"/proc/self{number}/fd/{fd}"
    finally:
        os.close(fd)
