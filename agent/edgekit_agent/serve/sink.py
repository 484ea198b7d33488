"""What a parser of HTTP/1.1 requests calls, and what it is asked."""

from __future__ import annotations

from typing import Protocol


class BadRequest(Exception):
    """Not HTTP, or HTTP that we do not take; `status` is the answer."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Sink(Protocol):
    """Called in this order; `on_url`, `on_header` and `on_body` any number of times."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...
    def head_without_upgrade(self) -> bytes:
        """The request's head once more, without its offer to change the protocol; empty: stop parsing."""
        ...


class RequestParser(Protocol):
    def feed(self, data: bytes) -> None:
        """Raises BadRequest."""
        ...

    def method(self) -> bytes: ...
    def version(self) -> str: ...
    def keep_alive(self) -> bool:
        """Whether the client will send another request; asked when a message is complete."""
        ...

    def upgrade(self) -> bool: ...
