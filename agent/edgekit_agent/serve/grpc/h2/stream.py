"""One stream: a request and its answer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from edgekit_agent.serve.grpc.h2.head import Head


@dataclass(slots=True, eq=False)
class Stream:
    """States of RFC 9113 section 5.1: `remote_done` and `local_done` are its two half-closed states."""

    id: int
    head: Head
    begun: float
    """Seconds on the connection's clock."""
    send_window: int
    """Octets that the peer will take; may be negative after a change of its settings (section 6.9.2)."""
    receive_window: int
    """Octets that we have allowed the peer to send."""
    received: int = 0
    """Octets of the body so far, without padding."""
    remote_done: bool = False
    local_done: bool = False
    """Our END_STREAM is sent, or waits in `trailers`, or the stream was reset."""
    closed: bool = False
    busy: bool = False
    """Set by the sink while work is done that a reset does not stop; counts against the limit of streams."""
    coming: int = 0
    """Octets of the DATA frame at hand that are counted in the window and have not come yet."""
    pending: deque[memoryview] | None = None
    """What flow control has not let out."""
    trailers: bytes | None = None
    """Header block that follows `pending`; empty: the last DATA frame ends the stream."""
    moved: float = 0.0
    """When `pending` last became shorter."""
    app: Any = None
    """The sink's own."""

    def on_whole(self, data: bytes, start: int, end: int) -> None:
        """Instead of the sink's on_request, on_data and on_end: the whole body is data[start:end].

        For the kind of stream that a machine is given for requests whose header has a `plan`.
        """
        raise NotImplementedError
