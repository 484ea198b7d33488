"""One case of a fuzz run, and how it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GROUP = 16
"""Cases that share a connection, where their kind does; numbers from a multiple of it on."""


class Wire(StrEnum):
    KEPT = "HTTP/1.1, framed right"
    RAW = "HTTP/1.1, any bytes"
    CALL = "HTTP/2, framed right"
    FRAMES = "HTTP/2, any frames"
    BELOW = "instead of TLS, any bytes"
    SPOILT = "TLS, records spoilt"


@dataclass(frozen=True, slots=True)
class Case:
    number: int
    wire: Wire
    protocol: str
    data: bytes
    """What is sent; of CALL the frames of stream 0, whose number is to be put in; of SPOILT what
    is encrypted before the records are spoilt."""
    bare: bool = False
    """A HEAD request: the answer has no body."""
    last: bool = False
    """The client says that this is its last request on the connection."""
    grpc: bool = False
    loose: bool = False
    """Of CALL: its header or length may be malformed, so that a reset is an answer."""
    denied: int = 0
    """Nobody may ask this without a right token: the status that says so, which must be the answer."""
