"""TensorRT on an NVIDIA GPU: ONNX Runtime's provider where it is installed, else TensorRT's own package.

Files, made by `edgekit.backends.tensorrt`: `model.onnx`, and `plan.json` (`edgekit.runtimes._trt_plan`) from
which the engine is built here, once per GPU, driver and version (`edgekit.runtimes._trt_cache`).

Options (all optional):
    fallback      str    who takes what TensorRT cannot, in order; default "cuda,cpu"; "": nobody
    min_coverage  float  share of nodes that TensorRT itself must take, else loading fails; default 0
    via           str    "onnxruntime", "tensorrt" or "auto" (default)
    cache         str    where engines are kept: "memory" (default), "disk", "none"
    device        int    the GPU's number; default 0

Nothing falls back in silence: what TensorRT did not take is logged, and `coverage` counts it. By itself ONNX
Runtime would answer from the CPU, with a line on stdout at most, when a provider's library is missing.

No GPU was at hand when this was written: see docs/engines.md for what was tried.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError, EngineMissing
from edgekit.files import write_bytes
from edgekit.runtimes import _cuda, _ort_session, _trt_cache, _trt_engine, _trt_plan, _trt_provider
from edgekit.runtimes._base import Files, Options, Runtime, Session
from edgekit.runtimes._trt_cache import Entry
from edgekit.runtimes._trt_plan import Plan
from edgekit.runtimes._trt_provider import HINT

log = logging.getLogger("edgekit.runtimes.tensorrt")

_NAME = "tensorrt"
OWN_UNITS = (_trt_provider.PROVIDERS["tensorrt"], _trt_engine.UNIT)
"""Names in `coverage` of what TensorRT itself runs."""
_VIA = ("auto", "onnxruntime", "tensorrt")
_ENGINE = "engine.plan"


@dataclass(frozen=True)
class Asked:
    """The options of one variant."""

    fallback: tuple[str, ...] = ("cuda", "cpu")
    min_coverage: float = 0.0
    via: str = "auto"
    cache: str = "memory"
    device: int = 0


class Engine:
    """A driver, TensorRT's library, and one of the two ways to it."""

    name = _NAME

    def version(self) -> str:
        """TensorRT's. Raises EngineMissing naming the part that is missing."""
        try:
            _cuda.identify(0)
        except EngineMissing as exc:
            raise EngineMissing(f"{_NAME}: {exc.message}", exc.hint) from None
        found = _library_version()
        if not found:
            raise EngineMissing(f"{_NAME}: its library libnvinfer is not installed", HINT)
        if not _trt_provider.offered() and _package() is None:
            raise EngineMissing(
                f"{_NAME}: neither an onnxruntime with its provider nor its Python package is installed",
                HINT,
            )
        return found

    def load(self, files: Files, options: Options) -> Session:
        """Build or fetch the engine and load it; the profile's fallbacks in turn when that fails."""
        asked = parse_options(options)
        version = self.version()
        model, plan = _split(files)
        if not plan.tf32:
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # read when CUDA's libraries load
        session, unit = self._first(model, plan, files["plan.json"], asked, version)
        try:
            check_coverage(session.coverage(), asked)
        except EngineError:
            session.close()
            raise
        log.info("%s: loaded by %s, nodes %s", _NAME, unit, session.coverage() or "unknown")
        return session

    def _first(
        self, model: bytes, plan: Plan, plan_bytes: bytes | memoryview, asked: Asked, version: str
    ) -> tuple[Session, str]:
        """The first of TensorRT and its fallbacks that loads the model."""
        problems: list[str] = []
        session: Session
        units = ("tensorrt", *asked.fallback)
        for place, unit in enumerate(units):
            chain = units[place:]
            try:
                if unit != "tensorrt":
                    session = _trt_provider.load(model, plan, chain, asked.device)
                elif use_provider(asked, offered=_trt_provider.offered()):
                    with _entry(model, plan_bytes, asked, version, "onnxruntime") as entry:
                        folder = entry.folder if entry else None
                        session = _trt_provider.load(
                            model, plan, chain, asked.device, folder, _timings(asked)
                        )
                        if entry is not None and not entry.intact:
                            entry.seal()
                else:
                    with _entry(model, plan_bytes, asked, version, "tensorrt") as entry:
                        session = _own(model, plan, asked, entry)
            except EngineError as exc:
                problems.append(f"{unit}: {exc.message}")
                log.warning("%s: %s did not load the model: %s", _NAME, unit, exc.message)
                continue
            return session, unit
        raise EngineError(f"{_NAME}: nothing loads the model: {'; '.join(problems)}")


def use_provider(asked: Asked, *, offered: bool) -> bool:
    """Whether ONNX Runtime is the way to TensorRT: where it offers the provider, unless told otherwise."""
    return asked.via == "onnxruntime" or (asked.via == "auto" and offered)


# -- TensorRT's own package ------------------------------------------------------------------------


def _own(model: bytes, plan: Plan, asked: Asked, entry: Entry | None) -> Session:
    trt = _package()
    if trt is None:
        raise EngineError("TensorRT's Python package is not installed")
    if entry is not None and entry.intact:
        return _trt_engine.load(trt, (entry.folder / _ENGINE).read_bytes(), plan, asked.device)
    timings = _timings(asked)
    known = timings / "own.cache" if timings else None
    engine, learnt = _trt_engine.build(
        trt, model, plan, known.read_bytes() if known and known.exists() else b""
    )
    session = _trt_engine.load(trt, engine, plan, asked.device)
    if entry is not None:
        write_bytes(entry.folder / _ENGINE, engine, mode=0o600)
        entry.seal()
    if known is not None and learnt:
        write_bytes(known, learnt, mode=0o600)
    return session


@contextmanager
def _entry(
    model: bytes, plan: bytes | memoryview, asked: Asked, version: str, via: str
) -> Iterator[Entry | None]:
    """Where this engine is kept, or None."""
    if asked.cache == "none":
        yield None
        return
    gpu = _cuda.identify(asked.device)
    made_from = {**identity(model, plan, version, via), **dataclasses.asdict(gpu)}
    with _trt_cache.entry(_trt_cache.root(asked.cache), made_from) as entry:
        yield entry


def identity(model: bytes, plan: bytes | memoryview, version: str, via: str) -> dict[str, str]:
    """What an engine depends on besides the GPU and its driver."""
    way = f"{via} {_ort_session.library(_NAME, HINT).__version__}" if via == "onnxruntime" else via
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "plan": hashlib.sha256(plan).hexdigest(),
        "tensorrt": version,
        "via": way,
    }


def _timings(asked: Asked) -> Path | None:
    """The folder of kernel timings, beside the engines."""
    if asked.cache == "none":
        return None
    folder = _trt_cache.root(asked.cache) / "timings"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


# -- options, files, libraries ---------------------------------------------------------------------


def parse_options(options: Options) -> Asked:
    """Raises EngineError naming the option."""
    known = {field.name for field in dataclasses.fields(Asked)}
    for key in options:
        if key not in known:
            raise EngineError(f"{_NAME}: unknown option {key!r}", f"known: {', '.join(sorted(known))}")
    given: dict[str, Any] = dict(options)
    if "fallback" in given:
        given["fallback"] = tuple(part.strip() for part in str(given["fallback"]).split(",") if part.strip())
    if isinstance(given.get("min_coverage"), int):
        given["min_coverage"] = float(given["min_coverage"])
    asked = Asked(**given)
    checks = {
        "fallback": set(asked.fallback) <= {"cuda", "cpu"}
        and len(set(asked.fallback)) == len(asked.fallback),
        "min_coverage": isinstance(asked.min_coverage, float) and 0 <= asked.min_coverage <= 1,
        "via": asked.via in _VIA,
        "cache": asked.cache in _trt_cache.KINDS,
        "device": isinstance(asked.device, int) and not isinstance(asked.device, bool) and asked.device >= 0,
    }
    for key, fine in checks.items():
        if not fine:
            raise EngineError(f"{_NAME}: option {key!r} cannot be {options[key]!r}")
    return asked


def check_coverage(coverage: Mapping[str, int], asked: Asked) -> None:
    """Raises EngineError when TensorRT takes a smaller share of the nodes than was asked for."""
    if not asked.min_coverage:
        return
    total = sum(coverage.values())
    own = sum(coverage.get(unit, 0) for unit in OWN_UNITS)
    if not total or own / total < asked.min_coverage:
        told = ", ".join(f"{unit} {nodes}" for unit, nodes in sorted(coverage.items())) or "nothing is told"
        raise EngineError(
            f"{_NAME}: {asked.min_coverage:.0%} of the nodes are wanted on TensorRT, they are on: {told}",
            "lower min_coverage in the profile, or let the device take its next variant",
        )


def _split(files: Files) -> tuple[bytes, Plan]:
    if set(files) != {"model.onnx", "plan.json"}:
        found = ", ".join(files) or "nothing"
        raise EngineError(f"{_NAME}: expected model.onnx and plan.json, got {found}")
    return bytes(files["model.onnx"]), _trt_plan.parse(bytes(files["plan.json"]))


def _package() -> Any:
    """TensorRT's Python package, or None."""
    try:
        import tensorrt

        _ = tensorrt.Builder  # a half-installed package imports as an empty namespace
    except (ImportError, AttributeError, OSError):
        return None
    return tensorrt


def _library_version() -> str:
    """From the package, else from the library itself; empty when there is neither."""
    if (package := _package()) is not None:
        numbers = re.match(r"\d+(?:\.\d+)+", str(package.__version__))
        return numbers[0] if numbers else ""
    for major in (11, 10, 8):
        try:
            return spelled(int(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion()))
        except (OSError, AttributeError):
            continue
    return ""


def spelled(number: int) -> str:
    """getInferLibVersion's number as text: 8601 is 8.6.1, 100300 is 10.3.0."""
    unit = 10_000 if number >= 100_000 else 1_000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


RUNTIME: Runtime = Engine()
