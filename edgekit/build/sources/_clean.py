"""The clean-up that precedes everything: constants folded, dead nodes gone, an opset that quantizers know.

No step is trusted: each result answers the same questions as the graph before it, or is thrown away.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekit.backends._silence import silenced
from edgekit.build.sources import _lower, _probe
from edgekit.build.sources._base import Arrays
from edgekit.build.sources.onnx_file import library
from edgekit.errors import EngineError, ModelError

OLD_OPSET = 13
"""Before it, QuantizeLinear has no axis: per-channel int8 is impossible."""
OPSET = 17
_LOG = logging.getLogger(__name__)


def clean(path: Path, model: Any, questions: Sequence[Arrays]) -> bytes:
    """`model` (checked, weights inside) as bytes that answer `questions` as it does.

    Raises ModelError when ONNX Runtime cannot load it. One that loads but cannot answer these questions
    (an input that is an index, say) is not simplified.
    """
    _unshare(model)
    raw = model.SerializeToString(deterministic=True)
    try:
        _probe.load(raw).close()
    except EngineError as exc:
        hint = "export it again, or with another opset; were --shape sizes right?"
        raise ModelError(f"{path}: {exc.message}", hint) from None
    try:
        wanted = _probe.answers(raw, questions)
    except EngineError as exc:
        _LOG.info("not simplified: it cannot be compared: %s", exc)
        return _stamped(model)
    if default_opset(model) < OLD_OPSET:
        model = _first_sound(model, wanted, questions, (_raised,))
    if _lower.needed(model):
        model = _first_sound(model, wanted, questions, (_lowered,))
    return _stamped(_first_sound(model, wanted, questions, (_slim, _sim)))


def default_opset(model: Any) -> int:
    """0 when the graph uses other domains only."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _first_sound(
    model: Any,
    wanted: Sequence[Arrays],
    questions: Sequence[Arrays],
    steps: Sequence[Callable[[Any], Any]],
) -> Any:
    """What the first step makes that still answers as `wanted`, else `model`."""
    for step in steps:
        try:
            with silenced(), _silent_logs():
                better = step(model)
            have = _probe.answers(better.SerializeToString(deterministic=True), questions)
        except Exception as exc:  # a clean-up that fails must not stop a sound model
            _LOG.info("%s failed: %s", step.__name__, exc)
            continue
        if not (said := _probe.difference(have, wanted)):
            return better
        _LOG.info("%s changed the answers: %s", step.__name__, said)
    return model


def _raised(model: Any) -> Any:
    from onnx import version_converter

    return version_converter.convert_version(model, OPSET)


def _lowered(model: Any) -> Any:
    return _lower.lower(_copy(model))


def _slim(model: Any) -> Any:
    import onnxslim

    return _unshare(onnxslim.slim(_copy(model)))


def _sim(model: Any) -> Any:
    """Only where somebody has installed it."""
    onnxsim = importlib.import_module("onnxsim")
    return _unshare(onnxsim.simplify(_copy(model))[0])


def _unshare(model: Any) -> Any:
    """Every DequantizeLinear gets a zero point of its own (models that come quantised, e.g. from TFLite).

    ONNX Runtime 1.32 with session.x64quantprecision, which x86 without VNNI needs, cannot load a model whose
    weights share one: "Attempt to replace the existing tensor".
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in tensors:
            continue
        name = node.input[2]
        if name in seen:
            own = model.graph.initializer.add()
            own.CopyFrom(tensors[name])
            own.name = node.input[2] = f"{name}/{place}"
        seen.add(name)
    return model


def _copy(model: Any) -> Any:
    """The libraries work in place: a failure must not leave half of it."""
    copy = library().ModelProto()
    copy.CopyFrom(model)
    return copy


def _stamped(model: Any) -> bytes:
    model.producer_name, model.producer_version, model.doc_string = "edgekit", "", ""
    _lower.forget_domains(model)
    return bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _silent_logs() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
