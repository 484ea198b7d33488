"""Ids of requests, and what the log says of them."""

from __future__ import annotations

import json
import logging
import sys
import time

import pytest

from edgekit_agent import logs
from edgekit_agent.serve import trace
from edgekit_agent.serve.message import Request, Response

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


def ask(requests: logs.Requests, response: Response, **headers: bytes) -> Response:
    """The answer that a client gets to one request."""
    fields = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    request = Request(b"POST", b"/v2/models/m/infer?token=x", fields, b"abc", True, time.perf_counter_ns())
    got: list[Response] = []
    trace.traced(lambda _, respond: respond(response), requests)(request, got.append)
    (answer,) = got
    return answer


def test_a_trace_goes_on() -> None:
    span = trace.begin(PARENT, b"job-7")
    assert (span.trace, span.parent, span.flags, span.request) == (TRACE, SPAN, "01", "job-7")
    assert span.span != SPAN and span.traceparent == f"00-{TRACE}-{span.span}-01"


def test_undefined_flags_are_not_passed_on_and_later_versions_are_read() -> None:
    assert trace.begin(PARENT[:-2] + b"ff", None).flags == "01"
    assert trace.begin(b"cc" + PARENT[2:] + b"-more", None).trace == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        None, b"", b"00", PARENT.upper(), PARENT + b"-x", b"ff" + PARENT[2:], PARENT[:-1],
        f"00-{'0' * 32}-{SPAN}-01".encode(), f"00-{TRACE}-{'0' * 16}-01".encode(),
        PARENT + b"-" + b"x" * 1000, b"00-" + b"g" * 32 + PARENT[35:],
    ],
)  # fmt: skip
def test_what_is_malformed_begins_a_trace(parent: bytes | None) -> None:
    span = trace.begin(parent, None)
    assert span.trace != TRACE and len(span.trace) == 32 and span.parent == ""
    assert span.request == span.trace


@pytest.mark.parametrize("given", [b"", b"a b", b"x\r\nSet-Cookie: a", b"\xff", b"x" * 129])
def test_ids_that_could_break_a_line_are_replaced(given: bytes) -> None:
    span = trace.begin(PARENT, given)
    assert span.request == TRACE


def test_requests_without_ids_are_not_touched() -> None:
    response = Response(200, b"{}")
    assert ask("none", response) is response


def test_the_answer_carries_both_and_is_a_copy() -> None:
    response = Response(200, b"{}", extra="Allow: GET\r\n")
    answer = ask("none", response, traceparent=PARENT, x_request_id=b"r1")
    assert response.extra == "Allow: GET\r\n", "an answer may be shared between clients"
    assert answer.extra.startswith(f"Allow: GET\r\ntraceparent: 00-{TRACE}-")
    assert answer.extra.endswith("\r\nX-Request-Id: r1\r\n")
    assert b"X-Request-Id: r1\r\n" in answer.head(close=False)


@pytest.mark.parametrize(
    ("requests", "status", "level"),
    [
        ("all", 200, "INFO"),
        ("all", 503, "ERROR"),
        ("failed", 400, "INFO"),
        ("failed", 200, ""),
        ("none", 500, ""),
    ],
)
def test_what_is_logged(
    requests: logs.Requests, status: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ask(requests, Response(status, b"12345"), traceparent=PARENT)
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    for record in caplog.records:
        fields = getattr(record, logs.FIELDS)
        assert (fields["trace_id"], fields["parent_id"], fields["status"]) == (TRACE, SPAN, status)
        assert (fields["path"], fields["method"]) == ("/v2/models/m/infer", "POST"), "no query"
        assert (fields["bytes_in"], fields["bytes_out"]) == (3, 5) and fields["ms"] >= 0


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("edgekit.x", logging.WARNING, __file__, 1, "it %s", ("fell\nover",), None)
    if fields:
        setattr(made, logs.FIELDS, fields)
    return made


def test_json_lines() -> None:
    made = record(path='a"b\n', status=200)
    try:
        raise ZeroDivisionError("no reason")
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    line = logs.Json("agent").format(made)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["process"], found["message"]) == ("warning", "agent", "it fell\nover")
    assert (found["path"], found["status"]) == ('a"b\n', 200)
    assert found["at"].endswith("Z") and "ZeroDivisionError: no reason" in found["traceback"]


def test_text_lines() -> None:
    line = logs.Text("%(levelname)s %(name)s").format(record(status=200, path='/a"\n b', empty=""))
    assert line == 'WARNING edgekit.x status=200 path="/a\\"\\n b" empty=""'
