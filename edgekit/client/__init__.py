"""A client for agents: `Client` blocks, `AsyncClient` is for asyncio. Needs NumPy and nothing else.

    client = edgekit.Client()
    scores = client.infer(x)

Any server of the Open Inference Protocol v2 with Triton's binary tensors understands it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.client._model import Answer, Model, Stats, Tensor, Timing
from edgekit.client._sync import Client

if TYPE_CHECKING:
    from edgekit.client._async import AsyncClient

__all__ = ["Answer", "AsyncClient", "Client", "Model", "Stats", "Tensor", "Timing"]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from edgekit.client._async import AsyncClient  # asyncio costs a blocking program 40 ms

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
