"""Attacks on the serving endpoint over raw sockets, against a real serving process, with both parsers."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.server import PARSERS
from tests.attacks.http_cases import INNER, REFUSED
from tests.support.devices import wait_for
from tests.support.serving import Stand, linear, stand

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
POST = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
LIMITS = Limits(read_timeout_s=5)


@pytest.fixture(scope="module", params=PARSERS)
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with stand(folder, LIMITS, parser=request.param) as made:
        assert linear(1.0).into(made.serving).ok
        yield made


def talk(agent: Stand, *parts: bytes) -> bytes:
    """Everything that the agent says until it closes, or until nothing has come for a while."""
    with agent.connect() as sock:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(20)
        said = b""
        while data := sock.recv(65536):
            said += data
        return said


def statuses(said: bytes) -> list[int]:
    """Of the answers, one after the other; asserts that there is nothing else."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        if head == b"HTTP/1.1 100 Continue":  # what was asked for before the fault had come
            said = rest
            continue
        size = re.search(rb"(?im)^content-length: (\d+)\r?$", head)
        assert head.startswith(b"HTTP/1.1 ") and size, said
        found.append(int(head.split()[1]))
        said = rest[int(size[1]) :]
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_requests_are_refused_and_end_the_connection(agent: Stand, case: str) -> None:
    """What follows is neither answered nor taken for a request; the next client notices nothing."""
    said = statuses(talk(agent, REFUSED[case] + INNER))
    assert len(said) == 1 and said[0] in (400, 405, 413, 431, 501, 505), said
    assert statuses(talk(agent, POST)) == [200]


@pytest.mark.parametrize("case", REFUSED)
def test_a_good_request_before_is_answered_none_after(agent: Stand, case: str) -> None:
    said = statuses(talk(agent, POST + REFUSED[case], INNER))
    assert said[0] == 200 and len(said) == 2 and said[1] >= 400, said


@pytest.mark.parametrize("case", [case for case in REFUSED if "beyond" not in case])
def test_byte_by_byte_it_is_the_same(agent: Stand, case: str) -> None:
    """A rule that looks only at whole lines of one packet would be no rule."""
    with agent.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for byte in REFUSED[case] + INNER:
                sock.sendall(bytes([byte]))
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        said = b""
        try:
            while data := sock.recv(65536):
                said += data
        except ConnectionResetError:
            pass
    assert len(statuses(said)) <= 1 and not said.startswith(b"HTTP/1.1 200"), said


def connections(agent: Stand) -> int:
    """As the agent counts them, the one that asks included."""
    said = talk(agent, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    found = re.search(rb"(?m)^edgekit_connections (\d+)$", said)
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("before", [b"", POST], ids=["alone", "after a good one"])
def test_clients_that_have_gone_hold_no_connections(agent: Stand, before: bytes) -> None:
    """Whatever they did wrong: what lingers for two seconds keeps others out."""
    for _ in range(3):
        for message in (b"GET /v2\r\n\r\n" + INNER, *REFUSED.values()):
            talk(agent, before + message)
    wait_for("the end of all connections", lambda: connections(agent) == 1, 1.0)


# --- floods and patience


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"1;" + b"a" * 200 + b"\r\nx\r\n"),  # bytes around the body
        (b"0\r\n", b"X: " + b"a" * 200 + b"\r\n"),  # trailers
        (b"0\r\n", b"X-%d: a\r\n"),
        (b"", b"1\r\nx\r\n"),  # the smallest chunks there are
    ],
    ids=["extensions", "trailers", "many trailers", "small chunks"],
)
def test_a_body_that_is_mostly_wrapping_is_refused(agent: Stand, head: bytes, piece: bytes) -> None:
    """Long before the body's own limit of 16 MiB."""
    start = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    flood = b"".join(piece % i if b"%d" in piece else piece for i in range((1 << 20) // len(piece)))
    with agent.connect() as sock:
        sock.settimeout(20)
        sock.sendall(start + head + flood)  # half a message: only an agent that minds says something
        said = b""
        while data := sock.recv(65536):
            said += data
    assert statuses(said) in ([400], [431])
    assert statuses(talk(agent, POST)) == [200]


def test_trailers_change_nothing(agent: Stand) -> None:
    """Not even one that would have the body taken for something else."""
    head = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 5\r\nHost: y\r\n"
    said = talk(agent, head + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY) + trailers + b"\r\n" + POST)
    assert statuses(said) == [200, 200]


@pytest.mark.parametrize("parser", PARSERS)
def test_slow_clients_are_ended_and_others_do_not_wait(tmp_path: Path, parser: str) -> None:
    """A byte now and then keeps no request alive beyond the limit; 60 such clients cost nobody an answer."""
    with stand(tmp_path, Limits(read_timeout_s=1.5), parser=parser) as made:
        assert linear(1.0).into(made.serving).ok
        slow = [made.connect() for _ in range(60)]
        begin, latencies = time.monotonic(), []
        position = 0
        open_ones = list(slow)
        while open_ones and time.monotonic() - begin < 20:
            for sock in list(open_ones):
                try:
                    sock.sendall(POST[position : position + 1])
                except OSError:
                    open_ones.remove(sock)
            position += 1
            asked = time.monotonic()
            assert statuses(talk(made, POST)) == [200]
            latencies.append(time.monotonic() - asked)
            time.sleep(0.1)
        lasted = time.monotonic() - begin
        assert not open_ones and lasted >= 1.5, (len(open_ones), lasted)
        assert sorted(latencies)[-3] < 1, latencies  # the machine may stand still twice
        for sock in slow:
            sock.close()
