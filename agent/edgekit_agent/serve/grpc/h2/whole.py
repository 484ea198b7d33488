"""The usual request in one go: HEADERS with a block that has come before, and one DATA frame with the body.

Does what machine.py does frame by frame, and leaves to it whatever is not the usual.
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


_ODD = 0x8000_0001  # of a stream's number, the last bit set and the reserved one not


@dataclass(frozen=True, slots=True)
class Usual:
    """The last such request, but for its stream's number and its body: the next is probably the same.

    Machine forgets it when a header block goes another way, because the same block may mean something else
    then, and when it leaves.
    """

    first: bytes
    """The beginning of its HEADERS frame."""
    rest: bytes
    """From behind the stream's number to the one of the DATA frame."""
    body: int
    """Where the body begins, counted from the HEADERS frame."""
    size: int
    """Octets of the body."""
    head: Head
    window: int
    """Octets of a stream's first window that the body leaves."""


def take(machine: Machine, data: bytes, pos: int, end: int) -> int:
    """Hand on the request at `pos`, where a frame begins; returns where the next begins, 0: not the usual."""
    usual = machine.usual
    if (
        usual is None
        or not data.startswith(usual.rest, pos + _HEAD_BYTES)
        or not data.startswith(usual.first, pos)
    ):
        usual = _learn(machine, data, pos, end)
        if usual is None:
            return 0
    start = pos + usual.body
    after = start + usual.size
    octets = data[pos + _NUMBER : pos + _HEAD_BYTES]
    number = int.from_bytes(octets, "big")
    window = machine.window - usual.size
    streams = machine.streams
    if (
        after > end
        or data[start - 4 : start] != octets
        or number & _ODD != 1
        or number <= machine.last_stream
        or window < machine.least_window
        or len(streams) + machine.orphans >= machine.most_streams
    ):
        return 0
    machine.last_stream = number
    machine.window = window
    machine.frames += 2
    streams[number] = stream = machine.kind(
        number, usual.head, machine.now, machine.output.initial_window, usual.window, usual.size, True
    )
    machine.sink.on_whole(stream, data, start, after)
    return after


def _learn(machine: Machine, data: bytes, pos: int, end: int) -> Usual | None:
    """What is at `pos`, if it is a request of the usual kind."""
    start = pos + _HEAD_BYTES
    middle = start + int.from_bytes(data[pos : pos + 3], "big")
    body = middle + _HEAD_BYTES
    if data[pos + 3 : pos + 5] != _HEADERS or data[middle + 3 : middle + 5] != _DATA or body > end:
        return None
    head = machine.blocks.known(data[start:middle])
    size = int.from_bytes(data[middle : middle + 3], "big")
    config = machine.config
    if head is None or head.plan is None or head.length >= 0 or machine.refuse_above < frames.MAX_STREAM:
        return None
    if not 0 < size <= min(config.window, config.frame_size):
        return None
    first, rest = data[pos : pos + _NUMBER], data[start : middle + _NUMBER]
    machine.usual = Usual(first, rest, body - pos, size, head, config.window - size)
    return machine.usual
