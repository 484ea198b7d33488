"""Models that TVM has compiled to machine code, run by TVM's small runtime: no compiler on the device.

Files, made by `edgekit.backends.tvm`:
    model.so            the compiled model, weights inside
    libtvm_runtime.so   TVM's runtime for the target's processor; one per process, the first that is loaded
    io.json             {"format": "edgekit-tvm", "version": 1, "architecture", "cpu", "kernels",
                         "inputs" and "outputs": [{"name", "datatype", "shape"}], -1 is the batch,
                         "sha256": {file: digest}}
The device needs the package apache-tvm-ffi, 11 MB, and nothing else. Both libraries are loaded from
memory (memfd), so plaintext touches no disk. They are machine code: whoever signs such a bundle may run
code here, which is why the files' digests are checked before anything is mapped.

Options (all optional):
    intra_threads   int   threads inside one kernel; default 1

A model is compiled for one row: `run` works through a batch row by row.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import codec
from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes import _tvm_library as native
from edgekit.runtimes._base import DTYPES, Array, Files, Options, Runtime
from edgekit.runtimes._ports import Port, check_inputs

_NAME = "tvm"
_VERSION = 1
_FILES = {"model.so", "libtvm_runtime.so", "io.json"}
_CPU, _DEVICE, _POOLED = 1, 0, 2  # DLPack's kDLCPU, its only device, TVM's pooled allocator
_ALL_CORES = 0


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    format: str
    version: int
    architecture: str
    cpu: str
    kernels: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sha256: dict[str, str]


class _Machine:
    """One of TVM's virtual machines with its input buffers; serves one run at a time."""

    def __init__(self, library: Any, executable: Any, ports: tuple[Port, ...]) -> None:
        machine = executable["vm_load_executable"]()
        machine["vm_initialization"](_CPU, _DEVICE, _POOLED)
        self._main = machine["main"]
        self._buffers = [native.aligned(port.dtype, tuple(map(abs, port.shape))) for port in ports]
        self._tensors = [library.from_dlpack(buffer) for buffer in self._buffers]

    def run(self, rows: list[Array]) -> list[Array]:
        """(1, ...) each in and out; the outputs are copies."""
        for buffer, row in zip(self._buffers, rows, strict=True):
            buffer[...] = row
        value = self._main(*self._tensors)
        values = [value] if hasattr(value, "__dlpack__") else list(value)
        return [np.array(np.from_dlpack(item)) for item in values]


class TvmSession:
    """A compiled model and its idle virtual machines.

    A machine holds the buffers of one inference, so each `run` borrows one; there are as many as there
    were runs at the same time, and they share the weights. TVM's calls release the GIL.
    """

    thread_safe = True

    def __init__(self, library: Any, executable: Any, about: Description, threads: int) -> None:
        self._library = library
        self._executable: Any = executable
        self._about = about
        self._threads = threads
        self._ports = tuple(Port(item.name, DTYPES[item.datatype], item.shape) for item in about.inputs)
        self._batched = any(port.shape[:1] == (-1,) for port in self._ports)
        self._idle: deque[_Machine] = deque()
        self._configured = threading.local()
        self._return(self._borrow(executable))  # a model that does not load must fail now

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        executable = self._executable
        if executable is None:
            raise EngineError(f"{_NAME}: the session is closed")
        check_inputs(_NAME, inputs, self._ports)
        count = self._rows(inputs)
        rooms = [np.empty(_sized(item, count), DTYPES[item.datatype]) for item in self._about.outputs]
        machine = self._borrow(executable)
        for i in range(count):
            part = slice(i, i + 1) if self._batched else slice(None)
            values = self._call(machine, [inputs[port.name][part] for port in self._ports])
            for room, value in zip(rooms, values, strict=True):
                room[part] = value
        self._return(machine)
        return {item.name: room for item, room in zip(self._about.outputs, rooms, strict=True)}

    def coverage(self) -> dict[str, int]:
        """Compiled functions that one inference calls, {"llvm": 14}: nothing can fall back here."""
        return {} if self._executable is None else {"llvm": self._about.kernels}

    def close(self) -> None:
        self._idle.clear()
        self._executable = None

    def _rows(self, inputs: Mapping[str, Array]) -> int:
        if not self._batched:
            return 1
        counts = {port.name: len(inputs[port.name]) for port in self._ports}
        if len(set(counts.values())) > 1:
            raise EngineError(f"{_NAME}: the inputs have different numbers of rows: {counts}")
        return next(iter(counts.values()))

    def _borrow(self, executable: Any) -> _Machine:
        if not hasattr(self._configured, "done"):  # TVM keeps a thread pool per calling thread
            native.limit_threads(self._library, self._threads)
            self._configured.done = True
        try:
            return self._idle.pop()
        except IndexError:
            return _Machine(self._library, executable, self._ports)

    def _return(self, machine: _Machine) -> None:
        self._idle.append(machine)

    def _call(self, machine: _Machine, rows: list[Array]) -> list[Array]:
        try:
            return machine.run(rows)
        except Exception as exc:  # native errors arrive as ValueError, RuntimeError and their like
            raise EngineError(f"{_NAME}: {native.words(exc)}") from None


class Engine:
    """The apache-tvm-ffi package; TVM's runtime itself travels with the model."""

    name = _NAME

    def version(self) -> str:
        """The release of apache-tvm-ffi alone ("0.1.14"), without its post-release number."""
        numbers = re.match(r"\d+(?:\.\d+)+", str(_library().__version__))
        return numbers[0] if numbers else "0.0"

    def load(self, files: Files, options: Options) -> TvmSession:
        library = _library()
        threads = _threads(options)
        about = _description(files)
        machine = os.uname().machine
        if about.architecture != machine:
            raise EngineError(
                f"{_NAME}: compiled for {about.architecture} ({about.cpu}), this machine is {machine}",
                "build it for this machine, or measure it on the device",
            )
        try:
            native.load_runtime(files["libtvm_runtime.so"], about.sha256["libtvm_runtime.so"])
            executable = native.load_module(library, files["model.so"])
            return TvmSession(library, executable, about, threads)
        except EngineError:
            raise
        except Exception as exc:  # see TvmSession._call
            raise EngineError(f"{_NAME}: cannot load the model: {native.words(exc)}") from None


def _library() -> Any:
    native.quiet()
    try:
        import tvm_ffi as library

        _ = library.get_global_func  # a half-installed package imports as an empty namespace
    except (ImportError, AttributeError) as exc:
        hint = "pip install 'edgekit-toolkit[tvm]'"
        raise EngineMissing(f"{_NAME} is not installed: {native.words(exc)}", hint) from None
    return library


def _threads(options: Options) -> int:
    for key, value in options.items():
        if key != "intra_threads":
            raise EngineError(f"{_NAME}: unknown option {key!r}", "known: intra_threads")
        if not isinstance(value, int) or isinstance(value, bool) or value < _ALL_CORES:
            raise EngineError(f"{_NAME}: option {key!r} cannot be {value!r}")
    return int(options.get("intra_threads", 1)) or os.cpu_count() or 1


def _description(files: Files) -> Description:
    if set(files) != _FILES:
        found = ", ".join(files) or "nothing"
        raise EngineError(f"{_NAME}: expected {', '.join(sorted(_FILES))}, got {found}")
    what = f"{_NAME}: io.json"
    about = codec.from_json(Description, bytes(files["io.json"]), what=what, error=EngineError)
    if (about.format, about.version) != (f"edgekit-{_NAME}", _VERSION):
        raise EngineError(f"{what} is {about.format} version {about.version}")
    if not all(item.datatype in DTYPES for item in (*about.inputs, *about.outputs)):
        raise EngineError(f"{what}: a tensor has an unknown data type")
    for name in sorted(_FILES - {"io.json"}):
        # The dynamic linker maps a cut-off library without a word and dies of SIGBUS later.
        if hashlib.sha256(files[name]).hexdigest() != about.sha256.get(name):
            raise EngineError(f"{_NAME}: {name} is not the file that io.json describes")
    return about


def _sized(item: Tensor, rows: int) -> tuple[int, ...]:
    return tuple(rows if size == -1 else size for size in item.shape)


RUNTIME: Runtime = Engine()
