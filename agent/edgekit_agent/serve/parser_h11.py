"""HTTP/1.1 requests parsed in pure Python (the `h11` package), where httptools has no wheel."""

from __future__ import annotations

import h11

from edgekit_agent.serve.sink import BadRequest, Sink

_NOTHING = h11.Response(status_code=200, headers=[("content-length", "0")])


class Parser:
    """Feeds a Sink with the same calls as parser_httptools. Answers are written elsewhere."""

    def __init__(self, sink: Sink, max_header_bytes: int = 1 << 20) -> None:
        self._sink = sink
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=max_header_bytes)
        self._request: h11.Request | None = None

    def feed(self, data: bytes) -> None:
        """Raises BadRequest; the connection is then of no further use."""
        try:
            self._parser.receive_data(data)
            while self._step():
                pass
        except h11.RemoteProtocolError as exc:
            raise BadRequest(str(exc), exc.error_status_hint) from None

    def _step(self) -> bool:
        """Handle one event; False when more bytes are needed."""
        event = self._parser.next_event()
        if isinstance(event, h11.Request):
            self._request = event
            self._sink.on_message_begin()
            self._sink.on_url(event.target)
            for name, value in event.headers:
                self._sink.on_header(name, value)
            self._sink.on_headers_complete()
        elif isinstance(event, h11.Data):
            self._sink.on_body(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self._sink.on_message_complete()
            return self._next_cycle()
        return isinstance(event, h11.Request | h11.Data)

    def _next_cycle(self) -> bool:
        # h11 wants an answer before the next request; ours are written in order by the connection.
        self._parser.send(_NOTHING)
        self._parser.send(h11.EndOfMessage())
        if self._parser.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            return False
        self._parser.start_next_cycle()
        return True

    def method(self) -> bytes:
        return bytes(self._request.method) if self._request else b""

    def version(self) -> str:
        return self._request.http_version.decode() if self._request else "1.1"

    def keep_alive(self) -> bool:
        return self._parser.their_state is not h11.MUST_CLOSE

    def upgrade(self) -> bool:
        return False
