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

from edgekit.build.reporting.document import Layer


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
