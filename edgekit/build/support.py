"""When an engine lacks an operator: which node it is, and which engine here takes the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from edgekit import backends
from edgekit.backends import SourceModel
from edgekit.build import worker
from edgekit.build.measure import Plan
from edgekit.errors import EdgekitError
from edgekit.profile import Profile, Target

TIMEOUT_S = 60.0
_LACKS = re.compile(
    r"no conversion rule|not.?implemented|not supported|unsupported|has no operator|"
    r"could not find an implementation",
    re.I,
)


def named(words: str, engine: str, model: SourceModel) -> str:
    """An engine's words, with the node that it stumbles over where they name an operator of the graph."""
    node = missing(words, model)
    said = node.rpartition(" (")[0] in words
    return f"{words}: {node} is not in {engine}" if node and not said else words


def missing(words: str, model: SourceModel) -> str:
    """The first node whose operator `words` call unsupported, e.g. "node 'bend' (DeformConv)"; else empty."""
    if not _LACKS.search(words):
        return ""
    import onnx

    for node in onnx.ModelProto.FromString(model.onnx).graph.node:
        if re.search(rf"\b{re.escape(node.op_type)}\b", words):
            return f"node {node.name or (node.output[0] if node.output else '')!r} ({node.op_type})"
    return ""


def takers(
    model: SourceModel, inputs: Mapping[str, NDArray[Any]], profile: Profile, but: Iterable[str]
) -> list[str]:
    """Engines installed here that build the fp32 model and answer one row of it. `inputs`: (rows, ...)."""
    return [
        name for name in backends.names() if name not in set(but) and _takes(name, model, inputs, profile)
    ]


def _takes(engine: str, model: SourceModel, inputs: Mapping[str, NDArray[Any]], profile: Profile) -> bool:
    target = Target(engine, ("fp32",))
    try:
        backend = backends.get(engine)
        backend.tools()
        recipe = next(iter(backend.recipes("fp32", target, profile.calibration)))
        _, files = worker.run(worker.Job("build", recipe, model=model), TIMEOUT_S)
        both = {f"{who}/{name}": data for who in ("candidate", "baseline") for name, data in files.items()}
        plan = Plan(profile.verify, classify=False, baseline_options=recipe.runtime_options)
        row = {f"input/{name}": array[:1] for name, array in inputs.items()}
        worker.run(worker.Job("answer", recipe, measure=plan, files=both, arrays=row), TIMEOUT_S)
    except (EdgekitError, StopIteration):
        return False
    return True
