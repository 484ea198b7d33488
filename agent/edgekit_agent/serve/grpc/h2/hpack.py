"""Header compression: a bounded decoder, and an encoder that keeps no state (RFC 7541)."""

from __future__ import annotations

from collections import deque

from edgekit_agent.serve.grpc.h2 import huffman
from edgekit_agent.serve.grpc.h2.errors import COMPRESSION_ERROR, H2Error

Field = tuple[bytes, bytes]

TABLE_SIZE = 4096
"""Octets of the dynamic table, the default of SETTINGS_HEADER_TABLE_SIZE (RFC 9113 section 6.5.2)."""
_OVERHEAD = 32  # counted for each entry, RFC 7541 section 4.1

# RFC 7541 Appendix A, from index 1 on.
STATIC: tuple[Field, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization "
            b"cache-control content-disposition content-encoding content-language content-length "
            b"content-location content-range content-type cookie date etag expect expires from host "
            b"if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link "
            b"location max-forwards proxy-authenticate proxy-authorization range referer refresh "
            b"retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary "
            b"via www-authenticate"
        ).split()
    ),
)
_FIRST_DYNAMIC = len(STATIC) + 1


class Decoder:
    """Header blocks to lists of fields. Its memory is `TABLE_SIZE` and one list of `max_list_bytes`."""

    def __init__(self, max_list_bytes: int, max_fields: int) -> None:
        self.changes = 0
        """Counts changes of the dynamic table: a block means the same as before while this is the same."""
        self._max_list_bytes = max_list_bytes
        self._max_fields = max_fields
        self._table: deque[Field] = deque()  # the newest first
        self._size = 0
        self._capacity = TABLE_SIZE

    @property
    def table_size(self) -> int:
        """Octets that the dynamic table holds by the measure of RFC 7541 section 4.1."""
        return self._size

    def decode(self, block: bytes) -> list[Field] | None:
        """The fields in order; None when they are more than the bounds allow (the table is right even then).

        Raises H2Error; the connection is then of no further use (RFC 9113 section 4.3).
        """
        fields: list[Field] = []
        size = pos = 0
        end = len(block)
        while pos < end:
            first = block[pos]
            if first & 0x80:  # indexed, section 6.1
                index, pos = _integer(block, pos, 7)
                field = self._entry(index)
            elif first & 0x40:  # literal, becomes an entry, section 6.2.1
                field, pos = self._literal(block, pos, 6)
                self._insert(field)
            elif first & 0x20:  # size update, section 6.3; before the first field only, section 4.2
                if size:
                    raise _broken("the table's size changes inside a header block")
                capacity, pos = _integer(block, pos, 5)
                self._resize(capacity)
                continue
            else:  # literal, is not to become an entry (here or further on), sections 6.2.2 and 6.2.3
                field, pos = self._literal(block, pos, 4)
            size += len(field[0]) + len(field[1]) + _OVERHEAD
            if size <= self._max_list_bytes and len(fields) < self._max_fields:
                fields.append(field)
            else:
                size = self._max_list_bytes + 1
        return fields if size <= self._max_list_bytes else None

    def _entry(self, index: int) -> Field:
        if 0 < index < _FIRST_DYNAMIC:
            return STATIC[index - 1]
        if 0 <= index - _FIRST_DYNAMIC < len(self._table):
            return self._table[index - _FIRST_DYNAMIC]
        raise _broken(f"index {index} is in no table")

    def _literal(self, block: bytes, pos: int, prefix: int) -> tuple[Field, int]:
        index, pos = _integer(block, pos, prefix)
        if index:
            name = self._entry(index)[0]
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        return (name, value), pos

    def _insert(self, field: Field) -> None:
        """Section 4.4: an entry larger than the table empties it, and is no error."""
        self.changes += 1
        size = len(field[0]) + len(field[1]) + _OVERHEAD
        self._evict(self._capacity - size)
        if size <= self._capacity:
            self._table.appendleft(field)
            self._size += size

    def _resize(self, capacity: int) -> None:
        if capacity > TABLE_SIZE:
            raise _broken(f"a table of {capacity} octets, {TABLE_SIZE} are allowed")
        self.changes += 1
        self._capacity = capacity
        self._evict(capacity)

    def _evict(self, wanted: int) -> None:
        while self._table and self._size > wanted:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _OVERHEAD


def encode(fields: list[Field]) -> bytes:
    """A header block of literals that need no dynamic table: it means the same on every connection."""
    out = bytearray()
    for name, value in fields:
        exact, same_name = _INDEX.get((name, value)), _NAMES.get(name)
        if exact:
            out.append(0x80 | exact)
            continue
        if same_name:
            out += _encode_integer(same_name, 4, 0)
        else:
            out.append(0)
            out += _encode_integer(len(name), 7, 0) + name
        out += _encode_integer(len(value), 7, 0) + value
    return bytes(out)


NO_TABLE = b"\x20"
"""Size update to 0: begins the first block we send, so that the peer's setting never matters again."""

_INDEX = {field: number for number, field in enumerate(STATIC, 1) if field[1]}
_NAMES = {field[0]: number for number, field in reversed(list(enumerate(STATIC, 1)))}


def _encode_integer(value: int, prefix: int, flags: int) -> bytes:
    """Section 5.1."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((flags | value,))
    out = bytearray((flags | limit,))
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(block: bytes, pos: int, prefix: int) -> tuple[int, int]:
    """An integer below 2^28 and what follows it (section 5.1)."""
    limit = (1 << prefix) - 1
    value = block[pos] & limit
    pos += 1
    if value < limit:
        return value, pos
    for shift in (0, 7, 14, 21):
        if pos >= len(block):
            raise _broken("a header block ends inside a number")
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise _broken("a number in a header block is too large")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """Section 5.2."""
    if pos >= len(block):
        raise _broken("a header block ends before a string")
    packed = block[pos] & 0x80
    size, pos = _integer(block, pos, 7)
    if size > len(block) - pos:
        raise _broken("a header block ends inside a string")
    text = block[pos : pos + size]
    return huffman.decode(text) if packed else text, pos + size


def _broken(text: str) -> H2Error:
    return H2Error(COMPRESSION_ERROR, text)
