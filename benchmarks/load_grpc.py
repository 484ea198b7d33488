"""Closed-loop gRPC load from one thread, as load.py for HTTP: every stream waits for its answer.

    python -m benchmarks.load_grpc 127.0.0.1:8000 PATH 8 1 2.0 < message     8 connections with 1 call each

Calls are sent as grpcio sends them: one header block that fills the dynamic table, then the same fields as
indexes; HEADERS, DATA and updates of two windows in one write. Made here of bytes that are ready, because a
client of the usual kind takes ten times as long for a call as the server does. Every answer's status is read.
"""

from __future__ import annotations

import json
import select
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import hpack
import numpy as np

from benchmarks.load import Result, connect

_CHUNK = 1 << 18
_WARM = 3
_HEAD = struct.Struct(">HBBBI")
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _UPDATE = 0, 1, 3, 4, 6, 7, 8
_LAST = 1
_WINDOW = 1 << 24
_MORE = b"\0\0\0\5"  # what grpcio widens a stream's window by: the prefix of a message


def run(address: str, path: str, message: bytes, connections: int, streams: int, seconds: float) -> Result:
    """In a process of its own. Raises RuntimeError with the first answer that is not OK."""
    numbers = [str(connections), str(streams), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.load_grpc", address, path, *numbers]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, input=message, capture_output=True, cwd=root, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace").strip()[-400:])
    return Result(**json.loads(done.stdout))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Head and payload."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


@lru_cache(64)
def _credit(octets: int) -> bytes:
    return frame(_UPDATE, 0, 0, octets.to_bytes(4, "big"))


class Client:
    """One connection."""

    def __init__(self, address: str, path: str, message: bytes) -> None:
        self.sock = connect(address)
        self._message = b"\0" + len(message).to_bytes(4, "big") + message
        fields = [
            (b":path", path.encode()), (b":authority", address.encode()), (b"te", b"trailers"),
            (b"content-type", b"application/grpc"), (b"user-agent", b"edgekit-benchmark"),
            (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        ]  # fmt: skip
        self._first = b"\x83\x86" + b"".join(_literal(*field) for field in fields)
        self._block = b"\x83\x86" + bytes(0x80 | 62 + place for place in reversed(range(len(fields))))
        update, data = frame(_UPDATE, 0, 0, _MORE), frame(_DATA, _LAST, 0, self._message)
        # A call but for its stream's number, which comes between.
        self._cut = (
            frame(_HEADERS, 4, 0, self._block)[:5], self._block + update[:5], _MORE + data[:5], data[9:],
        )  # fmt: skip
        self._next = 1
        self._frame, self._window = 16384, 65535  # largest frame and first window that the server takes
        self._left: dict[int, bytes] = {}  # of messages, what no window has let out yet
        self._decoder = hpack.Decoder()
        self._seen: dict[bytes, bool] = {}  # header blocks, and whether they say OK
        self._rest = b""
        self._received = 0
        self._size, self._taken, self._end = -1, 0, b""  # octets of a whole answer: all, DATA, the last
        self.begun: dict[int, float] = {}
        settings = struct.pack(">HIHI", 4, _WINDOW, 5, 1 << 20)
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, settings)
        self.sock.sendall(hello + frame(_UPDATE, 0, 0, _WINDOW.to_bytes(4, "big")))

    def call(self, now: float) -> bytes:
        """The octets of one call more."""
        number, self._next = self._next, self._next + 2
        self.begun[number] = now
        received = _credit(self._received) if self._received else b""
        self._received = 0
        if number > 1 and len(self._message) <= min(self._window, self._frame):
            return number.to_bytes(4, "big").join(self._cut) + received
        block = self._first if number == 1 else self._block
        head = frame(_HEADERS, 4, number, block) + frame(_UPDATE, 0, number, _MORE)
        return head + self._body(number, self._message, self._window) + received

    def _body(self, number: int, message: bytes, window: int) -> bytes:
        """As much as a window lets out; the rest waits."""
        if len(message) <= min(window, self._frame):
            return frame(_DATA, _LAST, number, message)
        if len(message) > window:
            self._left[number] = message[window:]
        cuts = range(0, min(len(message), window), self._frame)
        parts = [message[start : min(start + self._frame, window)] for start in cuts]
        last = number not in self._left
        flags = [0] * (len(parts) - 1) + [_LAST if last else 0]
        return b"".join(frame(_DATA, flag, number, part) for part, flag in zip(parts, flags, strict=True))

    def _settings(self, payload: bytes) -> bytes:
        before, out = self._window, frame(_SETTINGS, 1, 0)
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 4:
                self._window = value
            elif key == 5:
                self._frame = value
        for number in [*self._left]:
            out += self._body(number, self._left.pop(number), self._window - before)
        return out

    def read(self, data: bytes) -> tuple[list[int], bytes]:
        """The calls that `data` answers, and what is to be sent for it. Raises RuntimeError."""
        if (
            len(data) == self._size and data.endswith(self._end) and len(self.begun) == 1
            and not self._rest
        ):  # fmt: skip
            self._received += self._taken
            return [*self.begun], b""  # the same as before
        data, before = self._rest + data, self._received
        pos, end = 0, len(data)
        done: list[int] = []
        out = b""
        while end - pos >= 9:
            upper, lower, kind, flags, number = _HEAD.unpack_from(data, pos)
            size = upper << 8 | lower
            after = pos + 9 + size
            if after > end:
                break
            if kind == _DATA:
                self._received += size
            elif kind == _HEADERS:
                block = data[pos + 9 : after]
                fine = self._seen.get(block)
                if fine is None:
                    fine = self._decode(block)
                if flags & _LAST:
                    if not fine:
                        raise RuntimeError(f"an answer that is not OK: {data[pos:after][:300]!r}")
                    done.append(number)
                    if block in self._seen and after == end:
                        self._size, self._taken, self._end = end, self._received - before, block
            elif kind == _SETTINGS and not flags:
                out += self._settings(data[pos + 9 : after])
            elif kind == _UPDATE and number in self._left:
                increment = int.from_bytes(data[pos + 9 : after], "big")
                out += self._body(number, self._left.pop(number), increment)
            elif kind == _PING and not flags:
                out += frame(_PING, 1, 0, data[pos + 9 : after])
            elif kind in (_RST, _GOAWAY):
                raise RuntimeError(f"the server gave up: {data[pos:after]!r}")
            pos = after
        self._rest = data[pos:]
        return done, out

    def _decode(self, block: bytes) -> bool:
        before = list(self._decoder.header_table.dynamic_entries)
        fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        fine = fields.get(b"grpc-status") == b"0"
        if list(self._decoder.header_table.dynamic_entries) == before:
            self._seen[block] = fine
        else:
            self._seen.clear()
        return fine


def _literal(name: bytes, value: bytes) -> bytes:
    """Without Huffman coding, becomes an entry of the table."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


def ask(client: Client) -> bytes:
    """One call; the message that answers it."""
    client.sock.sendall(client.call(0.0))
    answer = b""
    while client.begun:
        data = client.sock.recv(_CHUNK)
        if not data:
            raise RuntimeError("the server hung up")
        done, out = client.read(data)
        for number in done:
            del client.begun[number]
        if out:
            client.sock.sendall(out)
        answer += data
    body, pos = b"", 0
    while pos < len(answer):
        upper, lower, kind, _, _ = _HEAD.unpack_from(answer, pos)
        after = pos + 9 + (upper << 8 | lower)
        body += answer[pos + 9 : after] if kind == _DATA else b""
        pos = after
    return body[5:]


def measure(
    address: str, path: str, message: bytes, connections: int, streams: int, seconds: float
) -> Result:
    """In this process."""
    clients = [Client(address, path, message) for _ in range(connections)]
    for client in clients:
        for _ in range(_WARM):
            ask(client)
    poller = select.epoll()
    by_number = {client.sock.fileno(): client for client in clients}
    times: list[float] = []
    clock = time.perf_counter
    stop = clock() + seconds
    for number, client in by_number.items():
        poller.register(number, select.EPOLLIN)
        client.sock.sendall(b"".join(client.call(clock()) for _ in range(streams)))
    asked = (_WARM + streams) * connections
    left = connections
    while left:
        for number, _ in poller.poll(30):
            client = by_number[number]
            data = client.sock.recv(_CHUNK)
            if not data:
                raise RuntimeError("the server hung up")
            done, out = client.read(data)
            now = clock()
            for stream in done:
                begun = client.begun.pop(stream)
                if now <= stop:
                    times.append(now - begun)
                    out += client.call(now)
            if out:
                client.sock.sendall(out)
            if done and not client.begun:
                left -= 1
    for client in clients:
        client.sock.close()
    p50, p99 = (round(float(value) * 1e3, 4) for value in np.percentile(times, (50, 99)))
    return Result(round(len(times) / seconds, 1), p50, p99, round(max(times) * 1e3, 3), asked + len(times))


def main() -> int:
    address, path, connections, streams, seconds = sys.argv[1:]
    message = sys.stdin.buffer.read()
    found = measure(address, path, message, int(connections), int(streams), float(seconds))
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
