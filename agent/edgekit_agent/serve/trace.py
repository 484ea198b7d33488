"""Which request an answer and a log line belong to: request ids and W3C trace context.

A client may send `traceparent` (https://www.w3.org/TR/trace-context/) and `X-Request-Id`; the answer carries
both, with this server's own span, and so does the log. Requests without either are not touched unless the log
wants them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit_agent.logs import FIELDS, Requests
from edgekit_agent.serve.message import Request, Response

Respond = Callable[[Response], None]
Handle = Callable[[Request, Respond], None]

_log = logging.getLogger("edgekit.agent.requests")
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ID = re.compile(rb"[\w.:/@+=-]{1,128}", re.ASCII)
_LONGEST_PATH = 200


@dataclass(frozen=True)
class Span:
    """One request's place in a trace. Ids are lower-case hexadecimal."""

    trace: str
    span: str
    parent: str
    """Empty: the trace begins here."""
    flags: str
    request: str
    """What the client calls the request, or its trace."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"


def begin(parent: bytes | None, request_id: bytes | None) -> Span:
    """This server's span of a request with these header fields; what is malformed counts as absent."""
    found = _PARENT.fullmatch(parent.strip()) if parent is not None and len(parent) < 512 else None
    if found and not _sound(found):
        found = None
    trace = found[2].decode() if found else os.urandom(16).hex()
    named = request_id is not None and _ID.fullmatch(request_id)
    return Span(
        trace=trace,
        span=os.urandom(8).hex(),
        parent=found[3].decode() if found else "",
        flags=f"{int(found[4], 16) & 1:02x}" if found else "00",  # of the flags only "sampled" is defined
        request=request_id.decode() if request_id is not None and named else trace,
    )


def asked(headers: Mapping[bytes, bytes], requests: Requests) -> Span | None:
    """The span of a request with these header fields; None: neither the client nor the log wants one."""
    parent, given = headers.get(b"traceparent"), headers.get(b"x-request-id")
    if parent is None and given is None and requests == "none":
        return None
    return begin(parent, given)


def traced(handle: Handle, requests: Requests) -> Handle:
    """`handle` with ids in its answers and lines in the log: of every request, the failed ones, or none."""

    def traced_handle(request: Request, respond: Respond) -> None:
        span = asked(request.headers, requests)
        if span is None:
            return handle(request, respond)

        def answer(response: Response) -> None:
            if requests == "all" or (requests == "failed" and response.status >= 400):
                _note(span, request, response)
            extra = f"{response.extra}traceparent: {span.traceparent}\r\nX-Request-Id: {span.request}\r\n"
            respond(dataclasses.replace(response, extra=extra))

        return handle(request, answer)

    return traced_handle


def note(
    span: Span, level: int, received_ns: int, path: bytes, sizes: tuple[int, int], fields: dict[str, object]
) -> None:
    """A line in the log for a request that is answered. `sizes`: octets of its body and of the answer's."""
    common: dict[str, object] = {
        "request_id": span.request,
        "trace_id": span.trace,
        "span_id": span.span,
        **({"parent_id": span.parent} if span.parent else {}),
        **fields,
        "path": path.partition(b"?")[0].decode("latin-1")[:_LONGEST_PATH],
        "ms": round((time.perf_counter_ns() - received_ns) / 1e6, 3),
        "bytes_in": sizes[0],
        "bytes_out": sizes[1],
    }
    _log.log(level, "request", extra={FIELDS: common})


def _note(span: Span, request: Request, response: Response) -> None:
    sizes = len(request.body), len(response.body) + sum(part.nbytes for part in response.tail)
    level = logging.ERROR if response.status >= 500 else logging.INFO
    fields = {"method": request.method.decode("latin-1"), "status": response.status}
    note(span, level, request.received_ns, request.target, sizes, fields)


def _sound(found: re.Match[bytes]) -> bool:
    version, more = found[1], found[5]
    return version != b"ff" and not (version == b"00" and more) and _set(found[2]) and _set(found[3])


def _set(digits: bytes) -> bool:
    """Not all zeros, which stand for no id."""
    return digits.strip(b"0") != b""
