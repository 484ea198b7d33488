"""The control socket: frames and descriptors arrive whole or are refused; memory is sealed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, FormatError, SystemFault
from edgekit_agent import ipc, memfd
from edgekit_agent.ipc_async import AsyncChannel
from edgekit_agent.messages import Loaded, Ping, Pong, Stats, StatsRequest, descriptors
from edgekit_agent.serve.limits import Limits
from tests.support.serving import linear


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        yield one, two


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_load_arrives_with_its_memory(pair: tuple[socket.socket, socket.socket]) -> None:
    before = open_files()
    candidate = linear()
    sender, receiver = ipc.Channel(pair[0]), ipc.Channel(pair[1])
    with candidate.memory() as fds:
        sender.send(candidate.load, fds)
        sender.send(Ping(2))
    message, received = receiver.receive()
    assert message == candidate.load and receiver.receive() == (Ping(2), [])
    expected = [*candidate.files.values(), *candidate.golden.values()]
    assert [bytes(memfd.read(fd)) for fd in received] == expected
    memfd.close_all(received)
    assert open_files() == before


def test_frames_may_come_in_any_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    candidate = linear()
    count = descriptors(candidate.load)
    frames = (
        ipc.encode(Ping(1), ()) + ipc.encode(candidate.load, [0] * count) + ipc.encode(Pong(3, 4, 0.5), ())
    )
    for step in (1, 3, 1000):
        decoder = ipc.Decoder()
        fds = [os.dup(0) for _ in range(count)]
        found = []
        for start in range(0, len(frames), step):
            found += decoder.feed(frames[start : start + step], fds if start == 0 else ())
        assert [message for message, _ in found] == [Ping(1), candidate.load, Pong(3, 4, 0.5)]
        assert [len(taken) for _, taken in found] == [0, count, 0]
        memfd.close_all(found[1][1])


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!I", ipc.MAX_FRAME_BYTES + 1),
        framed(b""),
        framed(b"{]"),
        framed(b"[]"),
        framed(b'{"type": "Ping"}'),
        framed(b'{"type": "Exec", "body": {"id": 1}}'),
        framed(b'{"type": ["Ping"], "body": {"id": 1}}'),
        framed(b'{"type": "Ping", "body": {"id": ""}}'),
        framed(b'{"type": "Ping", "body": {"id": 1, "x": 2}}'),
    ],
)
def test_broken_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(ConfigError):
        ipc.Decoder().feed(frame, ())


def test_descriptors_are_counted() -> None:
    load = linear().load
    with pytest.raises(ConfigError, match="files"):
        ipc.encode(load, [0])
    with pytest.raises(ConfigError, match="files"):
        ipc.encode(Ping(1), [0])
    with pytest.raises(ConfigError, match="files named, 0 came"):
        ipc.Decoder().feed(ipc.encode(load, [0] * descriptors(load)), ())
    decoder = ipc.Decoder()
    with pytest.raises(ConfigError, match="too many"):
        decoder.feed(b"", [os.dup(0) for _ in range(ipc.MAX_DESCRIPTORS + 1)])
    decoder.close()


def test_calls_get_their_own_answers_whatever_the_order(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = ipc.Client(pair[0]), ipc.Channel(pair[1])
    identities = [client.next_id() for _ in range(8)]
    found: dict[int, Pong] = {}

    def ask(identity: int) -> None:
        found[identity] = client.call(Ping(identity), Pong, timeout_s=20)

    threads = [threading.Thread(target=ask, args=(identity,)) for identity in identities]
    for thread in threads:
        thread.start()
    asked = [server.receive()[0].id for _ in identities]
    server.send(Pong(10**9, 0, 0.0))  # nobody waits for this one
    for identity in reversed(asked):
        server.send(Pong(identity, identity, 0.0))
    for thread in threads:
        thread.join()
    assert {identity: pong.in_flight for identity, pong in found.items()} == {i: i for i in identities}
    with pytest.raises(SystemFault, match=r"did not answer Ping within 0\.05 s"):
        client.call(Ping(client.next_id()), Pong, timeout_s=0.05)
    client.close()


def test_a_dead_or_babbling_server_ends_every_call(pair: tuple[socket.socket, socket.socket]) -> None:
    client = ipc.Client(pair[0])
    failures: list[Exception] = []

    def ask() -> None:
        try:
            client.call(StatsRequest(client.next_id()), Stats, timeout_s=60)
        except ipc.Closed as exc:
            failures.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    ipc.Channel(pair[1]).receive()
    pair[1].sendall(b"\xff" * 100)  # not a frame
    thread.join(20)
    assert len(failures) == 1
    with pytest.raises(ipc.Closed):
        client.call(Ping(client.next_id()), Pong, timeout_s=60)
    client.close()


def test_a_wrong_kind_of_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = ipc.Client(pair[0]), ipc.Channel(pair[1])
    identity = client.next_id()
    server.send(Pong(0, 0, 0.0))
    thread = threading.Thread(target=lambda: server.send(Loaded(server.receive()[0].id, True)))
    thread.start()
    with pytest.raises(SystemFault, match="answered Ping with Loaded"):
        client.call(Ping(identity), Pong, timeout_s=20)
    thread.join()
    client.close()


def test_async_side_sends_more_than_the_socket_holds(pair: tuple[socket.socket, socket.socket]) -> None:
    text = "x" * 4_000_000

    async def serve() -> None:
        channel = AsyncChannel(pair[1])
        message, _ = await channel.receive()
        await asyncio.gather(*(channel.send(Loaded(message.id, True, message=text)) for _ in range(3)))
        with pytest.raises(ipc.Closed):
            await channel.receive()
        channel.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    client = ipc.Channel(pair[0])
    client.send(Ping(5))
    for _ in range(3):
        answer, _ = client.receive()
        assert isinstance(answer, Loaded) and answer.message == text
    client.close()
    thread.join(20)
    assert not thread.is_alive()


def test_sealed_memory_cannot_be_changed() -> None:
    descriptor = memfd.create("weights", b"secret")
    for change in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 1),
        lambda: os.ftruncate(descriptor, 100),
    ):
        with pytest.raises(OSError):
            change()
    view = memfd.read(descriptor)
    os.close(descriptor)
    assert bytes(view) == b"secret" and view.readonly
    empty = memfd.create("empty", b"")
    assert bytes(memfd.read(empty)) == b""
    os.close(empty)


def test_unsealed_memory_is_refused() -> None:
    descriptor = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b"may change")
    with pytest.raises(FormatError, match="sealed"):
        memfd.read(descriptor)
    os.close(descriptor)


def test_limits_survive_the_command_line_and_are_checked() -> None:
    limits = Limits(max_batch=7, inline_ms=0)
    assert Limits.from_argument(limits.to_argument()) == limits
    for field in dataclasses.fields(Limits):
        with pytest.raises(ConfigError, match=field.name):
            Limits.from_argument(dataclasses.replace(limits, **{field.name: -1}).to_argument())


def test_a_channel_that_another_thread_has_closed_is_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A killed serving process is hung up on while others are about to ask it."""
    channel = ipc.Channel(pair[0])
    channel.close()
    with pytest.raises(ipc.Closed):
        channel.send(Ping(1))
    with pytest.raises(ipc.Closed):
        channel.receive()
