"""Per-layer error as an overlay for Google's Model Explorer ("node data" of one graph).

Format: `results` by node id or output tensor name, `gradient` from the smallest to the largest value
(github.com/google-ai-edge/model-explorer, node_data_builder.py).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

from edgekit.build.reporting.document import Candidate, Layer, Report
from edgekit.errors import InputError


def pick(report: Report, name: str) -> Candidate:
    """The candidate called `name` ("openvino.int8", or with its profile in front); without a name the first
    that ships. Raises InputError naming those that have figures by layer."""
    known = [one for one in report.candidates if one.layers]
    named = [one for one in known if name in (one.name, f"{one.profile}.{one.name}")]
    fitting = named if name else sorted(known, key=lambda one: not one.kept)
    if fitting:
        return fitting[0]
    if not known:
        raise InputError("the report has no errors by layer", "build with --layers or --report FILE.html")
    names = ", ".join(f"{one.profile}.{one.name}" for one in known)
    raise InputError(f"no candidate {name!r} with errors by layer", f"one of {names}")


def overlay(layers: Sequence[Layer]) -> dict[str, Any]:
    """Node data: SQNR in dB per layer, red where it is low. Layers without a figure are left out."""
    results = {
        row.name: {"value": row.sqnr_db}
        for row in layers
        if row.sqnr_db is not None and math.isfinite(row.sqnr_db)
    }
    gradient = [
        {"stop": 0, "bgColor": "#d9480f"},
        {"stop": 0.5, "bgColor": "#ffe066"},
        {"stop": 1, "bgColor": "#d3f9d8"},
    ]
    return {"results": results, "gradient": gradient}


def data_uri(layers: Sequence[Layer]) -> str:
    """The overlay as a `data:` address that a browser saves without any network."""
    return "data:application/json;base64," + base64.b64encode(json.dumps(overlay(layers)).encode()).decode()
