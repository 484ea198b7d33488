"""HTTP/1.1 requests parsed by llhttp (the `httptools` package)."""

from __future__ import annotations

import httptools

from edgekit_agent.serve.sink import BadRequest, Sink


class Parser:
    """Feeds a Sink. llhttp calls the sink's methods itself."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parser = httptools.HttpRequestParser(sink)

    def feed(self, data: bytes) -> None:
        """Raises BadRequest; the connection is then of no further use."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            # A client offers another protocol (Java's tries h2c first). HTTP lets a server ignore that,
            # llhttp does not: it stops after the header. So parse it again, without the offer.
            head = self._sink.head_without_upgrade()
            if head:
                self._parser = httptools.HttpRequestParser(self._sink)
                self.feed(head + data[stop.args[0] :])
        except httptools.HttpParserCallbackError as exc:
            raise exc.__context__ or exc from None
        except httptools.HttpParserError as exc:
            raise BadRequest(str(exc) or "not HTTP") from None

    def method(self) -> bytes:
        return bytes(self._parser.get_method())

    def version(self) -> str:
        return str(self._parser.get_http_version())

    def keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def upgrade(self) -> bool:
        """Whether the request will come again without its offer of another protocol."""
        return bool(self._parser.should_upgrade())
