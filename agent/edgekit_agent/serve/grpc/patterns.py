"""Messages that differ from an earlier one in their tensors' octets only, recognized without parsing.

A parser of protocol buffers does not look into the octets of a length-delimited field that it hands on as
they are. So two messages of the same size that are equal everywhere else mean the same, but for those octets;
and one whole field between two others may be exchanged for another of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

Octets = bytes | memoryview
"""A view where it is large."""
MAX_BYTES = 2048
"""Of a message without its tensors; longer ones are not kept."""
MAX_ID = 127
"""Octets of the field that may differ; the size of a longer one takes two octets."""
_ID = 0x1A  # field 3, length-delimited


class Pattern:
    """One message without its tensors. Where tensors lie counts from the message's end."""

    __slots__ = ("_after", "_at", "_before", "_between", "_size", "_whole")

    def __init__(
        self, message: Octets, tensors: Sequence[tuple[int, int]], identity: tuple[int, int] | None = None
    ) -> None:
        """`tensors`: where each lies in `message`, begin and end, in ascending order.

        `identity`: begin and end of a whole field 3 before all of them, or where there might be one; a
        message that fits may have another there, or none.
        """
        end = len(message)
        at, after = identity or (-1, -1)
        first = tensors[0][0]
        self._at = at
        self._size = end - (after - at)
        self._before, self._after = bytes(message[: max(at, 0)]), bytes(message[max(after, 0) : first])
        self._whole = self._before + self._after
        gaps = zip([stop for _, stop in tensors], [*(start for start, _ in tensors[1:]), end], strict=True)
        # The octets between tensors, and behind the last.
        self._between = tuple(
            (stop - end, bytes(message[stop:start])) for stop, start in gaps if start > stop
        )

    def fits(self, message: Octets) -> bytes | None:
        """What the field of variable size holds, empty where there is none; None: this is another message."""
        extra = len(message) - self._size
        found = b""
        starts = message.startswith if isinstance(message, bytes) else partial(_starts, message)
        if not extra:
            if not starts(self._whole):
                return None
        else:
            at = self._at
            if not (
                1 < extra <= MAX_ID + 2
                and at >= 0
                and starts(self._before)
                and message[at] == _ID
                and message[at + 1] == extra - 2
                and starts(self._after, at + extra)
            ):
                return None
            found = bytes(message[at + 2 : at + extra])
        for place, octets in self._between:
            if not starts(octets, place):
                return None
        return found


def _starts(view: memoryview, octets: bytes, place: int = 0) -> bool:
    """As bytes.startswith."""
    if place < 0:
        place += len(view)
    return view[place : place + len(octets)] == octets


def fields(message: Octets) -> Iterator[tuple[int, int, int, int]]:
    """Of a message that was parsed already: tag, begin of the field, begin and end of its octets.

    Ends before the first field that is not length-delimited or whose tag is longer than an octet.
    """
    pos, end = 0, len(message)
    while pos < end:
        tag, at = message[pos], pos + 1
        size = shift = 0
        if tag & 7 != 2 or tag >= 0x80:
            return
        while True:
            octet = message[at]
            at += 1
            size |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        yield tag, pos, at, at + size
        pos = at + size
