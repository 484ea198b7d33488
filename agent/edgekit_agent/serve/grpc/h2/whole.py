"""The usual request in one go: HEADERS with a block that has come before, and one DATA frame with the body.

grpcio puts a WINDOW_UPDATE of the stream between the two, and one of the connection behind them; beside a
request they cost no points. Does what machine.py does frame by frame, and leaves to it whatever is unusual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit_agent.serve.grpc.h2 import frames
from edgekit_agent.serve.grpc.h2.head import Head

if TYPE_CHECKING:
    from edgekit_agent.serve.grpc.h2.machine import Machine

_HEADERS = bytes((frames.HEADERS, frames.END_HEADERS))
_DATA = bytes((frames.DATA, frames.END_STREAM))
_HEAD_BYTES = frames.HEAD_BYTES
_NUMBER = 5  # where a stream's number is in a frame's head
_WIDEN = frames.head(frames.WINDOW_UPDATE, 0, 0, 4)
_UPDATE_BYTES = len(_WIDEN) + 4
_ODD = 0x8000_0001  # of a stream's number, the last bit set and the reserved one not


@dataclass(frozen=True, slots=True)
class Usual:
    """The last such request, but for its stream's number and its body: the next is probably the same.

    Machine forgets it when a header block goes another way, because the same block may mean something else
    then, and when it leaves.
    """

    frames: tuple[bytes, ...]
    """All before the body, cut where the stream's number is."""
    body: int
    """Where the body begins, counted from the HEADERS frame."""
    size: int
    """Octets of the body."""
    increment: int
    """Of the stream's WINDOW_UPDATE; 0: there is none."""
    head: Head
    window: int
    """Octets of a stream's first window that the body leaves."""


def take(machine: Machine, data: bytes, pos: int, end: int) -> int:
    """Hand on the request at `pos`, where a frame begins; returns where the next begins, 0: not the usual."""
    usual = machine.usual
    octets = data[pos + _NUMBER : pos + _HEAD_BYTES]
    if usual is None or not data.startswith(octets.join(usual.frames), pos):
        usual = _learn(machine, data, pos, end)
        if usual is None:
            return 0
    start = pos + usual.body
    after = start + usual.size
    number = int.from_bytes(octets, "big")
    window = machine.window - usual.size
    streams, output = machine.streams, machine.output
    open_for = output.initial_window
    if (
        after > end
        or number & _ODD != 1
        or number <= machine.last_stream
        or window < machine.least_window
        or len(streams) + machine.orphans >= machine.most_streams
    ):
        return 0
    if usual.increment:
        open_for += usual.increment
        if open_for > frames.MAX_WINDOW or output.waiting:
            return 0
    machine.last_stream = number
    machine.window = window
    machine.frames += 2
    streams[number] = stream = machine.kind(
        number, usual.head, machine.now, open_for, usual.window, usual.size, True
    )
    stream.on_whole(data, start, after)
    return after


def widens(machine: Machine, data: bytes, pos: int) -> bool:
    """Whether the rest of `data`, behind a request, was a WINDOW_UPDATE of the connection, as often."""
    if not pos or len(data) - pos != _UPDATE_BYTES or not data.startswith(_WIDEN, pos):
        return False
    output = machine.output
    window = output.window + int.from_bytes(data[pos + _HEAD_BYTES :], "big")
    if not output.window < window <= frames.MAX_WINDOW or output.waiting:
        return False
    output.window = window
    machine.frames += 1
    return True


def _learn(machine: Machine, data: bytes, pos: int, end: int) -> Usual | None:
    """What is at `pos`, if it is a request of the usual kind."""
    if data[pos + 3 : pos + _NUMBER] != _HEADERS:
        return None
    start = pos + _HEAD_BYTES
    middle = start + int.from_bytes(data[pos : pos + 3], "big")
    number = data[pos + _NUMBER : start]
    parts = [data[pos : pos + _NUMBER], data[start : middle + _NUMBER]]
    last, increment = middle, 0
    if data[middle : middle + _NUMBER] == _WIDEN[:_NUMBER]:
        last += _UPDATE_BYTES
        increment = int.from_bytes(data[last - 4 : last], "big")
        parts.append(data[last - 4 : last + _NUMBER])
        if not increment:
            return None
    body = last + _HEAD_BYTES
    if data[last + 3 : last + _NUMBER] != _DATA or body > end:
        return None
    head = machine.blocks.known(data[start:middle])
    size = int.from_bytes(data[last : last + 3], "big")
    config = machine.config
    if head is None or head.plan is None or machine.refuse_above < frames.MAX_STREAM:
        return None
    if not 0 < size <= min(config.window, config.frame_size) or head.length not in (-1, size):
        return None
    usual = Usual((*parts, b""), body - pos, size, increment, head, config.window - size)
    if not data.startswith(number.join(usual.frames), pos):
        return None  # frames of several streams
    machine.usual = usual
    return usual
