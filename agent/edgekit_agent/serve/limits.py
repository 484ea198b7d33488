"""What one client, and all of them together, may ask of the serving process."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgekit import codec
from edgekit.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Defaults suit a board with 1 GiB of memory."""

    max_header_bytes: int = 32 * 1024
    """Request line and header fields together."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Request body, also after decompression."""
    max_batch: int = 256
    """Samples in one request."""
    max_joined: int = 64
    """Samples of requests that share a run, where measurement says that it pays; 1: never share."""
    max_connections: int = 128
    """One client has three quarters of them at most."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """Large bodies of all connections together that have come and are not answered."""
    max_ahead_bytes: int = 4 * 1024 * 1024
    """Of these, complete ones that are read ahead of the engine; beyond that bodies wait in their sockets."""
    max_queue: int = 64
    """Inference requests that may wait; the next one is answered 503 with Retry-After."""
    concurrency: int = 1
    """Simultaneous runs of one session; each one costs its own scratch memory in the engine."""
    inline_ms: float = 0.5
    """Requests whose run takes less than this go without a thread; see docs/serving.md."""
    read_timeout_s: float = 30.0
    """From a request's first byte to its last."""
    idle_timeout_s: float = 300.0
    """Between requests on a kept connection."""
    write_timeout_s: float = 30.0
    """While the client does not take its answer."""

    def to_argument(self) -> str:
        """One command-line word."""
        return codec.to_json(self).decode()

    @staticmethod
    def from_argument(text: str) -> Limits:
        """Reverse of `to_argument`. Raises ConfigError."""
        limits = codec.from_json(Limits, text.encode(), what="--limits")
        for field in fields(limits):
            value = getattr(limits, field.name)
            if value < 0 or (value == 0 and field.name != "inline_ms"):
                raise ConfigError(f"--limits: {field.name} must be positive, is {value}")
        return limits
