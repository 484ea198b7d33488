"""The little of NVIDIA's driver that an engine needs, through libcuda.so.1, which comes with every driver.

CUDA's driver API keeps its binary interface, so ctypes is enough: no cuda-python, no runtime library to find.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes._base import Array

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """What decides whether an engine built on one machine fits another."""

    name: str
    capability: str
    """Compute capability, e.g. "8.7"."""
    driver: str
    """CUDA version of the driver, and the kernel module's own where it is told."""


class Cuda:
    """One device's primary context, which TensorRT uses as well. Raises EngineError with CUDA's words."""

    def __init__(self, device: int) -> None:
        self._lib = _library()
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(device))
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def use(self) -> None:
        """Make the context the calling thread's; every thread that runs has to."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(1))  # 1: CU_STREAM_NON_BLOCKING
        return handle.value or 0

    def allocate(self, size: int) -> int:
        """Bytes of device memory, at least one."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def to_device(self, pointer: int, array: Array, stream: int) -> None:
        """`array` is contiguous and outlives the stream's work."""
        host = array.ctypes.data_as(_VOID)
        self._copy("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(pointer), host, array, stream)

    def to_host(self, array: Array, pointer: int, stream: int) -> None:
        host = array.ctypes.data_as(_VOID)
        self._copy("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(pointer), array, stream)

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", _VOID(stream))

    def close(self, stream: int) -> None:
        """Give stream and context back."""
        self._call("cuStreamDestroy_v2", _VOID(stream))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _copy(self, function: str, to: Any, source: Any, array: Array, stream: int) -> None:
        self._call(function, to, source, ctypes.c_size_t(array.nbytes), _VOID(stream))

    def _call(self, function: str, *arguments: Any) -> None:
        _check(self._lib, function, *arguments)


_VOID = ctypes.c_void_p


def identify(device: int) -> Gpu:
    """Raises EngineMissing when there is no driver, or no such GPU."""
    lib = _library()
    number, version = ctypes.c_int(), ctypes.c_int()
    try:
        _check(lib, "cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
    except EngineError as exc:
        raise EngineMissing(f"no GPU {device}: {exc.message}", "nvidia-smi -L lists what there is") from None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(lib, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), number)
    _check(lib, "cuDriverGetVersion", ctypes.byref(version))
    parts = [_attribute(lib, number, which) for which in (_MAJOR, _MINOR)]
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(
        name.value.decode(errors="replace"), ".".join(map(str, parts)), f"{driver} {_module()}".strip()
    )


@functools.cache
def _library() -> ctypes.CDLL:
    hint = "TensorRT needs an NVIDIA GPU with its driver; JetPack has it, elsewhere install NVIDIA's driver"
    try:
        lib = ctypes.CDLL("libcuda.so.1")
        _check(lib, "cuInit", ctypes.c_uint(0))
    except OSError:
        raise EngineMissing("no NVIDIA driver: libcuda.so.1 is not there", hint) from None
    except EngineError as exc:
        raise EngineMissing(f"no usable NVIDIA GPU: {exc.message}", hint) from None
    return lib


def _attribute(lib: ctypes.CDLL, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    _check(lib, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), device)
    return value.value


def _check(lib: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code: int = getattr(lib, function)(*arguments)
    if code:
        name = ctypes.c_char_p()
        lib.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name))
        raise EngineError(f"{function}: {(name.value or b'error').decode()} ({code})")


def _module() -> str:
    """The kernel module's version; Jetson's tells none."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        return ""
