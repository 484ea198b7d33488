"""OpenVINO: IR with fp32 or fp16 weights, and int8 by nncf's post-training quantization.

`preset` decides whether ranges of activations are symmetric (performance) or may have a zero point
(mixed). nncf cannot force signed activations for the CPU plugin ("incompatible with HW capabilities"),
so profiles for ARM rule out the OpenVINO versions that compute unsigned ones wrongly.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import runtimes
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value, versions
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Target

_NAME = "openvino"
_INSTALL = "pip install 'edgekit-toolkit[build]'"


class Engine:
    """The openvino and nncf packages."""

    runtime = _NAME

    def tools(self) -> dict[str, str]:
        return versions(_NAME, ("openvino", "nncf"))

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        del policy  # nncf's own range estimators are the method
        runtime_options = dict(target.options)
        if precision in ("fp32", "fp16"):
            yield Recipe(_NAME, precision, {}, runtime_options)
        elif precision == "int8":
            options: dict[str, Value] = {
                "preset": "performance" if target.activation == "s8" else "mixed",
                "reduce_range": target.reduce_range,
            }
            yield Recipe(_NAME, precision, options, runtime_options, needs_calibration=True)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        library = _openvino()
        try:
            graph = library.Core().read_model(model.onnx)
            if recipe.precision == "int8":
                graph = _quantize(graph, recipe, calibration)
            with tempfile.TemporaryDirectory(prefix="edgekit-ov-") as name:
                path = Path(name) / "model.xml"
                library.save_model(graph, path, compress_to_fp16=recipe.precision == "fp16")
                return {"model.xml": _reproducible(path.read_bytes()), "model.bin": _weights(path)}
        except EngineMissing:
            raise
        except Exception as exc:  # both libraries raise RuntimeError and many others
            words = str(exc).strip().splitlines()
            last = words[-1] if words else type(exc).__name__
            raise EngineError(f"{recipe.name}: cannot build: {last}") from None


def _openvino() -> Any:
    # The engine imports it first: that is where its telemetry is switched off, nncf's too.
    runtimes.get(_NAME).version()
    import openvino

    return openvino


def _nncf() -> Any:
    """Takes seconds to import, and only int8 needs it."""
    try:
        import nncf
    except ImportError as exc:
        raise EngineMissing(f"cannot build int8 for {_NAME}: {exc}", _INSTALL) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantize(graph: Any, recipe: Recipe, calibration: Calibration) -> Any:
    nncf = _nncf()
    count = len(next(iter(calibration.values())))
    rows = [
        {name: np.ascontiguousarray(array[i : i + 1]) for name, array in calibration.items()}
        for i in range(count)
    ]
    fix = nncf.OverflowFix.ENABLE if recipe.options["reduce_range"] else nncf.OverflowFix.DISABLE
    return nncf.quantize(
        graph,
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset(str(recipe.options["preset"])),
        subset_size=count,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
    )


def _weights(path: Path) -> bytes:
    return path.with_suffix(".bin").read_bytes()


def _reproducible(xml: bytes) -> bytes:
    """The same graph without what differs from run to run, and without indentation.

    Names that OpenVINO makes up count up through the life of the process ("Constant_1098"), and the
    closing rt_info repeats the quantizer's settings, which the recipe records already.
    """
    made_up = rb'(<layer id="(\d+)") name="([A-Z]\w*)_\d+" (type="(?!Parameter")\w+")'
    named = re.sub(made_up, rb'\1 name="\3.\2" \4', xml)
    bare = re.sub(rb"(</edges>)\s*<rt_info>.*</rt_info>\s*(</net>)", rb"\1\2", named, flags=re.DOTALL)
    return re.sub(rb">\s+<", b"><", bare)


BACKEND: Backend = Engine()
