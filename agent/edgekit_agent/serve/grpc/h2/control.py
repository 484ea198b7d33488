"""Frames that carry neither headers nor data (RFC 9113 sections 6.3 to 6.9).

Each function takes the machine, flags, stream number and the whole payload; raises H2Error or StreamError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit_agent.serve.grpc.h2 import frames, guard
from edgekit_agent.serve.grpc.h2.errors import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    H2Error,
)

if TYPE_CHECKING:
    from edgekit_agent.serve.grpc.h2.machine import Machine

_MAX_SETTINGS = 64


def priority(machine: Machine, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG001
    """Deprecated; checked and ignored (section 6.3)."""
    if not number:
        raise H2Error(PROTOCOL_ERROR, "PRIORITY on stream 0")
    if len(payload) != 5:
        raise H2Error(FRAME_SIZE_ERROR, "PRIORITY has five octets")
    machine.guard.spend(guard.OTHER, "PRIORITY frames")


def rst_stream(machine: Machine, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG001
    """Section 6.4."""
    if len(payload) != 4:
        raise H2Error(FRAME_SIZE_ERROR, "RST_STREAM has four octets")
    stream = machine.streams.get(number)
    if stream is not None:
        machine.guard.spend(guard.RESET, "requests that are cancelled")
        machine.lose(stream)
    elif machine.is_idle(number):
        raise H2Error(PROTOCOL_ERROR, "RST_STREAM on a stream that is idle")
    else:
        machine.gone.ended(number)
        machine.guard.spend(guard.SMALL, "frames on closed streams")


def settings(machine: Machine, flags: int, number: int, payload: bytes) -> None:
    """Section 6.5. Of the peer's settings, those that limit what we send are followed."""
    if number:
        raise H2Error(PROTOCOL_ERROR, "SETTINGS on a stream")
    if flags & frames.ACK:
        if payload:
            raise H2Error(FRAME_SIZE_ERROR, "an acknowledgement with settings")
        machine.guard.spend(guard.OTHER, "acknowledgements")
        return
    if len(payload) % 6:
        raise H2Error(FRAME_SIZE_ERROR, "SETTINGS has six octets each")
    machine.guard.spend(guard.SETTINGS, "SETTINGS frames")
    if len(payload) > 6 * _MAX_SETTINGS:
        raise H2Error(ENHANCE_YOUR_CALM, f"more than {_MAX_SETTINGS} settings in one frame")
    for key, value in frames.pairs(payload):
        if key == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise H2Error(FLOW_CONTROL_ERROR, "an initial window beyond 2^31-1")
            machine.output.change_initial_window(value, list(machine.streams.values()))
        elif key == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                raise H2Error(PROTOCOL_ERROR, f"a largest frame of {value} octets")
            machine.output.frame_size = min(value, machine.config.frame_size)
        elif key == frames.ENABLE_PUSH and value > 1:
            raise H2Error(PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
    machine.output.put(frames.frame(frames.SETTINGS, frames.ACK, 0))
    machine.output.pump(machine.now)


def push_promise(machine: Machine, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG001
    """Section 8.4."""
    raise H2Error(PROTOCOL_ERROR, "a client cannot push")


def ping(machine: Machine, flags: int, number: int, payload: bytes) -> None:
    """Section 6.7."""
    if number:
        raise H2Error(PROTOCOL_ERROR, "PING on a stream")
    if len(payload) != 8:
        raise H2Error(FRAME_SIZE_ERROR, "PING has eight octets")
    machine.guard.spend(guard.PING, "PING frames")
    if flags & frames.ACK:
        machine.pinged(payload)
    else:
        machine.output.put(frames.frame(frames.PING, frames.ACK, 0, payload))


def goaway(machine: Machine, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG001
    """Section 6.8."""
    if number:
        raise H2Error(PROTOCOL_ERROR, "GOAWAY on a stream")
    if len(payload) < 8:
        raise H2Error(FRAME_SIZE_ERROR, "GOAWAY has eight octets or more")
    machine.guard.spend(guard.OTHER, "GOAWAY frames")
    machine.peer_leaves = True


def window_update(machine: Machine, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG001
    """Section 6.9."""
    if len(payload) != 4:
        raise H2Error(FRAME_SIZE_ERROR, "WINDOW_UPDATE has four octets")
    machine.guard.spend(guard.WINDOW, "WINDOW_UPDATE frames")
    stream = machine.streams.get(number)
    if number and stream is None:
        if machine.is_idle(number):
            raise H2Error(PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is idle")
        return
    machine.output.widen(stream, frames.number(payload))
    machine.output.pump(machine.now)


HANDLERS = {
    frames.PRIORITY: priority,
    frames.RST_STREAM: rst_stream,
    frames.SETTINGS: settings,
    frames.PUSH_PROMISE: push_promise,
    frames.PING: ping,
    frames.GOAWAY: goaway,
    frames.WINDOW_UPDATE: window_update,
}
