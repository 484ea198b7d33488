"""What is sent instead of TLS, or as its first records, to a port that speaks nothing else. Pure."""

from __future__ import annotations

from random import Random

from edgekit_agent.serve.grpc.h2 import frames
from tests.fuzz.mutate import garble

HANDSHAKE, ALERT, CHANGE, DATA = 22, 21, 20, 23
_LENGTHS = (0, 1, 2, 3, 0x7F, 0xFF, 0x100, 0x3FFF, 0x4000, 0x4001, 0x4100, 0x4101, 0x7FFF, 0xFFFF)


def record(kind: int, payload: bytes, version: int = 0x0301) -> bytes:
    """RFC 8446 section 5.1."""
    return bytes((kind,)) + version.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


def records(data: bytes) -> list[bytes]:
    """`data` cut where its records begin; the last may be incomplete."""
    found = []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:end])
        data = data[end:]
    return found


def _block(data: bytes, width: int = 2) -> bytes:
    return len(data).to_bytes(width, "big") + data


def hello(chance: Random) -> bytes:
    """A valid ClientHello (RFC 8446 section 4.1.2), without its record: TLS 1.3 and 1.2, h2 and HTTP/1.1."""
    extensions = [
        (43, _block(b"\x03\x04\x03\x03", 1)),  # versions
        (10, _block(b"\x00\x1d\x00\x17")),  # groups: x25519, P-256
        (11, _block(b"\x00", 1)),  # points, not compressed
        (13, _block(b"\x04\x03\x08\x04\x04\x01")),  # signatures
        (16, _block(_block(b"h2", 1) + _block(b"http/1.1", 1))),
        (45, _block(b"\x01", 1)),
        (51, _block(b"\x00\x1d" + _block(chance.randbytes(32)))),  # a key for x25519
        (35, b""),
    ]
    chance.shuffle(extensions)
    ciphers = b"\x13\x01\x13\x02\x13\x03\xc0\x2b\xc0\x2f\xc0\x2c\xc0\x30"
    body = (
        b"\x03\x03" + chance.randbytes(32) + _block(chance.randbytes(32), 1) + _block(ciphers) + b"\x01\x00"
    )
    body += _block(b"".join(number.to_bytes(2, "big") + _block(data) for number, data in extensions))
    return b"\x01" + _block(body, 3)


def below(chance: Random, clear: bytes) -> tuple[str, bytes]:
    """Its name and bytes. `clear`: a valid request, which is not for this port."""
    message = hello(chance)
    right = record(HANDSHAKE, message)
    match chance.randrange(10):
        case 0:
            first = chance.choice((b"", b"", b"\x16", b"\x16\x03\x01", b"\x80", b"\x16\x03\x03\x40\x00"))
            return "garbage", first + chance.randbytes(chance.choice((0, 1, 5, 11, 100, 2000, 20_000)))
        case 1:
            return "plaintext", clear
        case 2:
            return "plaintext", frames.PREFACE + frames.settings({}) + chance.choice((b"", clear))
        case 3:
            return "hello-garbled", garble(chance, right)
        case 4:
            return "hello-cut", right[: chance.randrange(1, len(right))]
        case 5:
            return "hello-in-pieces", _pieces(chance, message)
        case 6:
            return "hello-and-more", right + b"".join(
                _any(chance, clear) for _ in range(chance.randrange(1, 5))
            )
        case 7:
            return "hello-lies", record(HANDSHAKE, _lie(chance, message))
        case 8:
            kind = chance.choice((HANDSHAKE, HANDSHAKE, 24, 0, 255, DATA))
            version = chance.choice((0x0301, 0x0303, 0x0300, 0x0200, 0x0304, 0xFFFF, 0))
            length = chance.choice((*_LENGTHS, len(message) - 1, len(message) + 1))
            made = bytes((kind,)) + version.to_bytes(2, "big") + length.to_bytes(2, "big") + message
            return "record-lies", made + bytes(chance.choice((0, 0, 17_000)))
    return "records", b"".join(_any(chance, clear) for _ in range(chance.choice((1, 1, 2, 40))))


def _pieces(chance: Random, message: bytes) -> bytes:
    """In several records, empty ones among them (RFC 8446 forbids these), now and then one missing."""
    out, pos = [], 0
    while pos < len(message):
        size = chance.choice((1, 3, 4, 30, 200))
        out.append(record(HANDSHAKE, message[pos : pos + size]))
        pos += size
    if chance.random() < 0.5:
        at = chance.randrange(len(out) + 1)
        out[at:at] = [record(chance.choice((HANDSHAKE, CHANGE, DATA)), b"")] * chance.choice((1, 1, 40))
    if chance.random() < 0.2:
        del out[chance.randrange(len(out))]
    return b"".join(out)


def _lie(chance: Random, message: bytes) -> bytes:
    """A length inside the ClientHello that is not true; or an extension twice."""
    out = bytearray(message)
    lengths = [(1, 3), (38, 1), (71, 2), (87, 1), (89, 2)]
    pos = 91
    while pos + 4 <= len(message):
        lengths.append((pos + 2, 2))
        pos += 4 + int.from_bytes(message[pos + 2 : pos + 4], "big")
    at, width = chance.choice(lengths)
    number = int.from_bytes(out[at : at + width], "big") + chance.choice((-1, 1, 2, -2, 1000))
    lie = chance.choice((max(0, number), *_LENGTHS)) % (1 << 8 * width)
    out[at : at + width] = lie.to_bytes(width, "big")
    return bytes(out)


def _any(chance: Random, clear: bytes) -> bytes:
    """A record that has no place before or after a ClientHello."""
    match chance.randrange(7):
        case 0:
            return record(ALERT, bytes((chance.choice((1, 2, 3)), chance.choice((0, 10, 40, 90, 255)))))
        case 1:
            return record(CHANGE, chance.choice((b"\x01", b"\x00", b"\x01\x01", b"")), 0x0303)
        case 2:
            return record(DATA, chance.choice((b"", clear[:1000], chance.randbytes(100))), 0x0303)
        case 3:
            return record(24, b"\x01\xff\xff" + chance.randbytes(chance.choice((0, 16))), 0x0303)
        case 4:  # a hello of SSL 2
            return b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + chance.randbytes(37)
        case 5:
            kind = chance.choice((0, 1, 2, 4, 8, 11, 14, 16, 20, 24, 254))
            return record(
                HANDSHAKE, bytes((kind,)) + _block(chance.randbytes(chance.choice((0, 32, 500))), 3)
            )
    return record(HANDSHAKE, hello(chance), 0x0303)
