"""The bounded part of `python -m benchmarks.fuzz`: broken requests of every protocol to started agents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.fuzz import region
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.server import PARSERS
from tests.fuzz import judge, targets
from tests.fuzz.cases import GROUP, Case, Source, Wire
from tests.fuzz.client import Client, cases
from tests.fuzz.work import Found
from tests.support.serving import Stand, stand
from tests.support.started import started

SEED = 20261128
PART = {"tensors": 2400, "sound": 1600, "picture": 800, "words": 800}


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
    with started(tmp_path, made.model) as agent:
        client = Client([agent.address, str(agent.unix)], made)
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
    client = Client([place.address, str(place.path)], made)
    found = client.run(map(source.case, numbers))
    client.close()
    assert told(found, "tensors") == []
    assert psutil.Process(place.serving.process.pid).is_running()


# --- the tool itself


def test_a_number_is_always_the_same_case() -> None:
    one, two = (Source(SEED, Source.of("words", SEED).seeds, 0.3, ()) for _ in range(2))
    assert [one.case(n) for n in range(200)] == [two.case(n) for n in range(200)]
    assert len({one.case(n).data for n in range(200)}) > 190
    assert {one.wire(n) for n in range(GROUP)} == {one.wire(0)}
    assert {one.wire(n) for n in range(0, 100 * GROUP, GROUP)} == set(Wire)


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
