"""The bounded part of `python -m benchmarks.fuzz`: broken requests of every protocol to started agents."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import pytest

from benchmarks.fuzz import region
from edgekit_agent.serve.access import Access, Refused, wanted_grpc
from edgekit_agent.serve.access import wanted as server_wants
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.http_tools import parts_of
from edgekit_agent.serve.safety import Safety
from edgekit_agent.serve.server import PARSERS
from edgekit_agent.serve.tls import Tls
from edgekit_agent.tokens import Token
from tests.fuzz import below, guards, judge, targets
from tests.fuzz.case import GROUP, Case, Wire
from tests.fuzz.cases import Source
from tests.fuzz.client import Client, cases
from tests.fuzz.guards import Door
from tests.fuzz.work import Found
from tests.support.serving import Stand, stand
from tests.support.started import started

SEED = 20261128
PART = {"tensors": 2400, "sound": 1600, "picture": 800, "words": 800, "tls": 1200, "tokens": 1200}


@pytest.fixture(autouse=True)
def shared_memory() -> Iterator[None]:
    with region():
        yield


def told(found: Found, target: str) -> list[str]:
    again = f"python -m benchmarks.fuzz --target {target} --seed {SEED} --only"
    return [f"{again} {one.case.number}: {one.reason}" for one in found.failures]


@pytest.mark.slow
@pytest.mark.parametrize("target", PART)
def test_a_started_agent(target: str, tmp_path: Path) -> None:
    """Each request is answered or its connection ended; 5xx for nobody's mistake; no word in the log."""
    made, count = targets.ALL[target](), PART[target]
    options = guards.options(tmp_path, made.guard)
    with started(tmp_path, made.model, *options, beside=[targets.beside()]) as agent:
        client = Client(guards.doors(agent, tmp_path, made.guard), made)
        client.run(cases(target, SEED, range(count // 2)))
        between = agent.serving.memory_info().rss
        found = client.run(cases(target, SEED, range(count // 2, count)))
        client.close()
        assert told(found, target) == [] and agent.complaints() == []
        assert agent.same() and agent.serving.memory_info().rss - between < 24 << 20
    assert sum(found.statuses.values()) == count and found.checks >= 3
    kinds = {status.rpartition(": ")[2] for status in found.statuses}
    assert {"200", "400", "404", "405", "grpc 0", "grpc 3"} <= kinds  # deep enough, and broken enough


@pytest.fixture(params=PARSERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    with stand(tmp_path, parser=request.param) as made:
        yield made


def test_either_parser(place: Stand) -> None:
    """HTTP/1.1 alone, with the parser that boards without httptools have too."""
    made = targets.ALL["tensors"]()
    assert made.model.into(place.serving).ok
    source = Source.of("tensors", SEED + 1)
    numbers = [number for number in range(3000) if source.wire(number) in (Wire.KEPT, Wire.RAW)][:1500]
    client = Client([Door(place.address), Door(str(place.path))], made)
    found = client.run(map(source.case, numbers))
    client.close()
    assert told(found, "tensors") == []
    assert psutil.Process(place.serving.process.pid).is_running()


# --- the tool itself


@pytest.mark.parametrize("target", ["words", "tls", "tokens"])
def test_a_number_is_always_the_same_case(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time."""
    one = Source.of(target, SEED)
    two = dataclasses.replace(one)
    before = [one.case(n) for n in range(600)]
    monkeypatch.setattr("time.time", lambda: 1e9)  # gzip's header would hold it
    assert before == [two.case(n) for n in range(600)]
    assert len({case.data for case in before[:200]}) > 180
    assert {one.wire(n) for n in range(GROUP)} == {one.wire(0)}
    wires = {one.wire(n) for n in range(0, 600 * GROUP, GROUP)}
    assert wires == (set(Wire) if target == "tls" else set(Wire) - {Wire.BELOW, Wire.SPOILT})


def http(status: str, body: bytes, fields: str = "Content-Type: application/json\r\n") -> judge.Answer:
    data = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body
    taken = judge.answer(data)
    assert taken is not None and taken[1] == len(data) and judge.answer(data[:-1]) is None
    return taken[0]


CASE = Case(0, Wire.KEPT, "oip", b"POST / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (http("200 OK", b'{"a": [1.5]}'), ""),
        (http("200 OK", b'{"a": [NaN]}'), "not JSON"),
        (http("400 Bad Request", b'{"error": "why"}'), ""),
        (http("404 Not Found", b'{"code": 404, "type": "X", "message": "why"}'), ""),
        (http("400 Bad Request", b'{"error": "two\\nlines"}'), "one line"),
        (http("400 Bad Request", b"Bad Request"), "not JSON"),
        (http("405 Method Not Allowed", b'{"error": "x"}'), "Allow"),
        (http("500 Internal Server Error", b'{"error": "x"}'), "status 500"),
        (http("503 Service Unavailable", b'{"error": "x"}'), "status 503"),
        (http("503 Service Unavailable", b'{"error": "x"}', "Retry-After: 1\r\n"), ""),
    ],
)
def test_what_is_found_wrong_with_answers(found: judge.Answer, wrong: str) -> None:
    said = judge.of_http(CASE, found)
    assert wrong in said and bool(wrong) == bool(said)


@pytest.mark.parametrize("data", [b"HTTP/1.0 200 OK\r\n\r\n", b"<html>", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(judge.NoHttp):
        judge.answer(data)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ([(b":status", b"200"), (b"grpc-status", b"3"), (b"grpc-message", b"why")], ""),
        ([(b":status", b"200"), (b"grpc-status", b"13"), (b"grpc-message", b"oh")], "grpc-status 13: oh"),
        ([(b":status", b"200"), (b"grpc-status", b"2")], "grpc-status 2"),
        ([(b":status", b"500")], "status 500"),
        ([(b"a", b"b")], "no status"),
    ],
)
def test_what_is_found_wrong_with_streams(fields: list[hpack.Field], wrong: str) -> None:
    two = judge.Two()
    ends = frames.END_HEADERS | frames.END_STREAM
    data = frames.settings({}) + frames.frame(frames.HEADERS, ends, 1, hpack.encode(fields))
    assert list(two.feed(data)) == [1]
    said = judge.of_stream(CASE, two.streams[1])
    assert said.startswith(wrong) and bool(wrong) == bool(said)


def denied(status: int) -> Case:
    return Case(0, Wire.KEPT, "denied oip", b"POST / HTTP/1.1\r\n\r\n", denied=status)


ASKS = "Content-Type: application/json\r\nWWW-Authenticate: Bearer\r\n"


@pytest.mark.parametrize(
    ("status", "found", "wrong"),
    [
        (401, http("401 Unauthorized", b'{"error": "why"}', ASKS), ""),
        (403, http("403 Forbidden", b'{"error": "why"}'), ""),
        (401, http("401 Unauthorized", b'{"error": "why"}'), "without WWW-Authenticate"),
        (401, http("200 OK", b"{}"), "status 200 instead of 401"),
        (403, http("400 Bad Request", b'{"error": "why"}'), "status 400 instead of 403"),
        (401, http("401 Unauthorized", b'{"error": "two\\nlines"}', ASKS), "one line"),
    ],
)
def test_what_is_found_wrong_with_answers_to_strangers(status: int, found: judge.Answer, wrong: str) -> None:
    said = judge.of_http(denied(status), found)
    assert wrong in said and bool(wrong) == bool(said)


@pytest.mark.parametrize(("code", "wrong"), [(b"16", False), (b"7", True), (b"0", True), (b"13", True)])
def test_what_is_found_wrong_with_streams_of_strangers(code: bytes, wrong: bool) -> None:
    stream = judge.Stream({b":status": b"200", b"grpc-status": code}, ended=True)
    assert bool(judge.of_stream(denied(401), stream)) == wrong
    assert judge.of_stream(denied(401), judge.Stream(reset=8)), "a reset says nothing"


@pytest.mark.parametrize("number", range(50))
def test_no_token_that_is_to_be_refused_is_a_right_one(number: int, tmp_path: Path) -> None:
    """By the file itself; what each valid request needs, by who opens it."""
    guards.write_tokens(tmp_path / "tokens.json")
    access = Access(tmp_path / "tokens.json")
    source = Source.of("tokens", SEED)
    chance = Random(number)
    for seed in [*source.seeds.http, *source.seeds.pages]:
        wanted = guards.need(seed.method, seed.path)
        assert wanted == server_wants(seed.method, parts_of(seed.path))
        if not wanted:
            continue
        assert isinstance(access.check(wanted, guards.AUTHORIZATION[1]), Token)
        shown, status = guards.refused(chance, wanted)
        refused = access.check(wanted, shown)
        assert isinstance(refused, Refused) and refused.status == status, shown
    for call in source.seeds.calls:
        assert guards.need_of_call(call.path) == wanted_grpc(call.path.decode())


def test_the_hello_that_is_broken_is_a_right_one(tmp_path: Path) -> None:
    guards.options(tmp_path, guards.TLS)
    for number in range(20):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = Tls(Safety(str(tmp_path / "server.pem"), str(tmp_path / "server.key")), ("h2",)).context
        server = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(below.record(below.HANDSHAKE, below.hello(Random(number))))
        with pytest.raises(ssl.SSLWantReadError):
            server.do_handshake()
        assert outgoing.read()[5] == 2  # ServerHello
        assert server.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", "closed"),
        (below.record(below.ALERT, b"\x02\x32"), "alert 50"),
        (below.record(below.HANDSHAKE, bytes(90)) + below.record(below.DATA, bytes(9))[:7], "handshake"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "wrong"),
        (below.record(below.ALERT, b"\x02\x32") + b"<html>", "wrong"),
    ],
)
def test_what_answers_bytes_below_tls(data: bytes, status: str) -> None:
    found, wrong = judge.of_records(data)
    assert found == status and bool(wrong) == (status == "wrong")
