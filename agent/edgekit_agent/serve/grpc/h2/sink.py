"""What a machine is told, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgekit_agent.serve.grpc.h2.stream import Stream

Chunk = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Config:
    """What we announce and allow, in octets where nothing else is said."""

    max_streams: int = 128
    """Open streams and orphans together."""
    window: int = 256 * 1024
    """A stream's first window; `grant` widens it."""
    connection_window: int = 1 << 30
    frame_size: int = 1 << 20
    max_block_bytes: int = 32 * 1024
    """Of a compressed header block with its CONTINUATION frames, and of every frame but DATA."""
    max_list_bytes: int = 32 * 1024
    """Of the fields when unpacked, by the measure of SETTINGS_MAX_HEADER_LIST_SIZE."""
    max_fields: int = 100


class Sink(Protocol):
    """Who answers requests. Its calls come in order, never after `on_reset` of the same stream."""

    def on_request(self, stream: Stream) -> None:
        """A request's header is complete."""
        ...

    def on_data(self, stream: Stream, chunk: Chunk) -> None:
        """A part of its body. A memoryview keeps everything alive that was received with it."""
        ...

    def on_end(self, stream: Stream) -> None:
        """Nothing more comes; trailers, if there were any, were well-formed."""
        ...

    def on_reset(self, stream: Stream) -> None:
        """The stream is closed and nobody reads an answer."""
        ...
