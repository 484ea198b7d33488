"""OpenVINO: IR with fp32 or fp16 weights, and int8 by nncf's post-training quantization.

`preset` decides whether ranges of activations are symmetric (performance) or may have a zero point
(mixed). nncf cannot force signed activations for the CPU plugin ("incompatible with HW capabilities"),
so profiles for ARM rule out the OpenVINO versions that compute unsigned ones wrongly.

The graph is text, of small models longer than the weights, and is packed to a tenth.
"""

from __future__ import annotations

import gzip
import logging
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import runtimes
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value, versions
from edgekit.backends._graph import facts, kept
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Target

_NAME = "openvino"
_INSTALL = "pip install 'edgekit-toolkit[build]'"


class Engine:
    """The openvino and nncf packages."""

    runtime = _NAME

    def tools(self) -> dict[str, str]:
        return {**versions(_NAME, ("openvino", "nncf")), "zlib": zlib.ZLIB_RUNTIME_VERSION}

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        del policy  # nncf's own range estimators are the method
        for options in _options(precision, target):
            yield Recipe(
                _NAME, precision, options, dict(target.options), needs_calibration=precision == "int8"
            )

    def worth(self, model: SourceModel, recipe: Recipe) -> str:
        if "transformer" in recipe.options and not facts(model).attention:
            return "the graph has no attention"
        if recipe.options.get("transformer") == "plain":
            return ""
        if recipe.precision == "int8" and "transformer" not in recipe.options and facts(model).attention:
            return "the graph has attention, and other recipes are made for it"
        return ""

    def layers(self, model: SourceModel) -> list[str]:
        return list(facts(model).layers)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        library = _openvino()
        try:
            graph = library.Core().read_model(model.onnx)
            if recipe.precision == "int8":
                graph = _quantize(graph, recipe, calibration)
            elif recipe.precision.endswith("-weights"):
                graph = _compress(graph, recipe)
            with tempfile.TemporaryDirectory(prefix="edgekit-ov-") as name:
                path = Path(name) / "model.xml"
                library.save_model(graph, path, compress_to_fp16=recipe.precision == "fp16")
                xml = gzip.compress(_reproducible(path.read_bytes()), mtime=0)
                return {"model.xml.gz": xml, "model.bin": _weights(path)}
        except EngineMissing:
            raise
        except Exception as exc:  # both libraries raise RuntimeError and many others
            raise EngineError(f"{recipe.name}: cannot build: {_words(exc)}") from None


def _words(exc: Exception) -> str:
    """The libraries' message without places in their own sources and advice to their developers."""
    lines = [line.strip() for line in str(exc).splitlines()]
    noise = ("Exception from", "Check '", "To facilitate", "FrontEnd API failed", "Summary:")
    return " ".join(line for line in lines if line and not line.startswith(noise)) or type(exc).__name__


def _options(precision: str, target: Target) -> Iterator[dict[str, Value]]:
    """For nncf, best guess first."""
    if precision in ("fp32", "fp16", "int8-weights", "int4-weights"):
        yield {}
    elif precision == "int8":
        preset = "performance" if target.activation == "s8" else "mixed"
        plain: dict[str, Value] = {"preset": preset, "reduce_range": target.reduce_range}
        # For transformers with and without SmoothQuant, which moves outliers from activations into weights
        # (Xiao et al. 2022, arXiv:2211.10438): it helps most models and ruins some.
        yield {**plain, "transformer": "smooth"}
        yield {**plain, "transformer": "plain"}
        yield plain
        yield {**plain, "bias": "accurate"}


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
    smooth = nncf.quantization.advanced_parameters.AdvancedSmoothQuantParameters
    advanced = {"overflow_fix": fix}
    if recipe.options.get("transformer") == "plain":
        advanced["smooth_quant_alphas"] = smooth(convolution=-1, matmul=-1)
    return nncf.quantize(
        graph,
        nncf.Dataset(rows),
        preset=nncf.QuantizationPreset(str(recipe.options["preset"])),
        model_type=nncf.ModelType.TRANSFORMER if "transformer" in recipe.options else None,
        subset_size=count,
        fast_bias_correction=recipe.options.get("bias") != "accurate",
        ignored_scope=_ignored(nncf, graph, recipe),
        advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
    )


def _compress(graph: Any, recipe: Recipe) -> Any:
    """Weights in 8 or 4 bits (64 to a scale), arithmetic in floating point; needs no data."""
    nncf = _nncf()
    ignored = _ignored(nncf, graph, recipe)
    if recipe.precision == "int8-weights":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=ignored)
    mode = nncf.CompressWeightsMode.INT4_SYM
    return nncf.compress_weights(
        graph, mode=mode, ratio=1.0, group_size=64, all_layers=True, ignored_scope=ignored
    )


def _ignored(nncf: Any, graph: Any, recipe: Recipe) -> Any:
    """The nodes to keep in floating point. OpenVINO splits an ONNX node into several operations of one
    name ("Conv_3/WithoutBiases", then "Conv_3", which adds the bias), and every one of them is meant."""
    wanted = set(kept(recipe.options))
    if not wanted:
        return None
    known = [op.get_friendly_name() for op in graph.get_ops()]
    names = [name for name in known if name.removesuffix("/WithoutBiases") in wanted]
    return nncf.IgnoredScope(names=names) if names else None


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
