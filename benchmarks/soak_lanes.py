"""The connections of soak.py: what each sends again and again, and what must come back."""

from __future__ import annotations

import itertools
import json
import math
import socket
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.agent_latency import binary_request
from benchmarks.load import connect
from edgekit.runtimes import Array
from edgekit.runtimes._preprocess import apply
from edgekit_agent.serve.grpc import oip_messages, wire
from edgekit_agent.serve.grpc.framing import prefix
from edgekit_agent.serve.grpc.h2 import frames, hpack
from tests.support.started import Started
from tests.unit.runtimes import kws

MIX = {
    "binary": 30, "binary, Unix": 20, "JSON": 15, "TFS REST": 10, "gRPC": 13, "gRPC, Unix": 5,
    "pages": 2, "mistakes": 4, "gRPC mistakes": 1,
}  # fmt: skip
"""Of a hundred requests."""
LANES = 2
"""Connections of each kind."""
CHECK_EVERY = 10
_OVERLOAD = (429, 503, 8, 14)
"""Statuses of HTTP and gRPC."""
_CHUNK = 1 << 18
_WINDOW = 1 << 30


class Failed(Exception):
    """An answer that should not be."""


Check = Callable[[bytes], None]
"""Raises Failed for an answer's body."""


def _expected(sample: Array) -> Array:
    session = kws.session("onnxruntime", intra_threads=1)
    found: Array = session.run({kws.INPUT: sample})[kws.OUTPUT].ravel()
    session.close()
    return found


def _close(found: Array, wanted: Array) -> None:
    if found.shape != wanted.shape or not np.allclose(found, wanted, atol=1e-5):
        raise Failed(f"wrong numbers: {found.tolist()}")


def post(path: str, document: Any) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Lane:
    """One kept connection over HTTP/1.1; requests of a kind in turn, answers in order."""

    def __init__(self, kind: str, address: str, asks: list[tuple[bytes, int, Check | None]]) -> None:
        """`asks`: request, status, and what holds for the body of the answer."""
        self.kind = kind
        self.waiting: deque[tuple[float, int, Check | None]] = deque()
        self._address = address
        self._asks = itertools.cycle(asks)
        self._answers = 0
        self.refused = 0
        """Requests that had to be refused, because too many came at once after a standstill."""
        self._open()

    def _open(self) -> None:
        self._sock = connect(self._address)
        self._sock.setblocking(False)
        self._data = b""
        self.unsent = bytearray()
        self.number = self._sock.fileno()

    def send(self, due: float) -> None:
        """Raises OSError."""
        message, status, check = next(self._asks)
        self.waiting.append((due, status, check))
        self._put(message)

    def _put(self, message: bytes) -> None:
        """Never waits: who does not read the answers meanwhile is not read either, and both wait for ever."""
        self.unsent += message
        self.flush()

    def flush(self) -> None:
        """Send what the agent takes now. Raises OSError."""
        try:
            while self.unsent:
                del self.unsent[: self._sock.send(self.unsent)]
        except BlockingIOError:
            pass

    def receive(self, latency_ms: array[float]) -> None:
        """Take what has come. Raises Failed, OSError."""
        try:
            more = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        if not more:
            raise Failed("the agent hung up")
        self._data = self._data + more if self._data else more
        self._take(latency_ms)

    def _take(self, latency_ms: array[float]) -> None:
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            start = head.index(b"\r\ncontent-length:") + 17  # not Inference-Header-Content-Length
            stop = head.find(b"\r\n", start)
            size = int(head[start : stop if stop > 0 else end])
            if len(self._data) < end + 4 + size:
                return
            body, self._data = self._data[end + 4 : end + 4 + size], self._data[end + 4 + size :]
            self._answered(int(head[9:12]), body, latency_ms)

    def _answered(self, status: int, body: bytes, latency_ms: array[float]) -> None:
        if not self.waiting:
            raise Failed(f"an answer to nothing: {body[:200]!r}")
        due, wanted, check = self.waiting.popleft()
        latency_ms.append((time.perf_counter() - due) * 1e3)
        if status != wanted and status in _OVERLOAD:
            self.refused += 1
            return
        if status != wanted:
            raise Failed(f"{status} for {wanted}: {body[:200]!r}")
        self._answers += 1
        if check is not None and self._answers % CHECK_EVERY == 0:
            check(body)

    def reconnect(self) -> None:
        self.close()
        self.waiting.clear()
        self._open()

    def close(self) -> None:
        self._sock.close()


class Streams(Lane):
    """The same over HTTP/2: `asks` are (path, message, grpc-status)."""

    def __init__(self, kind: str, address: str, asks: list[tuple[str, bytes, int, Check | None]]) -> None:
        made = [(_header(path) + _data(message), status, check) for path, message, status, check in asks]
        super().__init__(kind, address, made)

    def _open(self) -> None:
        super()._open()
        self._stream = -1
        self._open_streams: dict[int, tuple[float, int, Check | None]] = {}
        self._messages: dict[int, bytes] = {}
        self._owed = 0
        hello = frames.settings({frames.INITIAL_WINDOW_SIZE: _WINDOW}) + frames.window_update(0, _WINDOW)
        self._put(frames.PREFACE + hello)

    def send(self, due: float) -> None:
        message, status, check = next(self._asks)
        self._stream += 2
        number = struct.pack(">I", self._stream)
        size = int.from_bytes(message[:3], "big") + 9
        self._open_streams[self._stream] = (due, status, check)
        self.waiting.append((due, status, check))
        self._put(
            message[:5] + number + message[9 : size + 5] + number + message[size + 9 :]
        )  # HEADERS and DATA of this stream

    def _take(self, latency_ms: array[float]) -> None:
        data, pos = self._data, 0
        while len(data) - pos >= 9:
            upper, lower, kind, flags, stream = frames.HEAD.unpack_from(data, pos)
            end = pos + 9 + (upper << 8 | lower)
            if len(data) < end:
                break
            self._frame(kind, flags, stream, data[pos + 9 : end], latency_ms)
            pos = end
        self._data = data[pos:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes, latency_ms: array[float]) -> None:
        if kind == frames.DATA:
            self._messages[stream] = self._messages.get(stream, b"") + payload
            self._owed += len(payload)
            if self._owed > _WINDOW // 2:
                self._put(frames.window_update(0, self._owed))
                self._owed = 0
        elif kind == frames.HEADERS and flags & frames.END_STREAM:
            due, wanted, check = self._open_streams.pop(stream)
            self.waiting.remove((due, wanted, check))
            self.waiting.appendleft((due, wanted, check))
            self._answered(_status(payload), self._messages.pop(stream, b"")[5:], latency_ms)
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._put(frames.frame(frames.SETTINGS, frames.ACK, 0))
        elif kind == frames.PING and not flags & frames.ACK:
            self._put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind in (frames.RST_STREAM, frames.GOAWAY):
            raise Failed(f"frame {kind}: {payload!r}")


def _status(block: bytes) -> int:
    """Of a block of literals, as the agent writes them."""
    at = block.find(b"grpc-status")
    if at < 0:
        raise Failed("a call ends without a status")
    return int(block[at + 12 : at + 12 + block[at + 11]])


def _header(path: str) -> bytes:
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    return frames.frame(frames.HEADERS, frames.END_HEADERS, 0, hpack.encode(fields))


def _data(message: bytes) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM, 0, prefix(len(message)) + message)


def grpc_request(sample: Array, **changes: Any) -> bytes:
    tensor = {"name": kws.INPUT, "datatype": "FP32", "shape": list(sample.shape)}
    values = {"model_name": "kws", "inputs": [tensor], "raw_input_contents": [sample.tobytes()]}
    return wire.encode(oip_messages.INFER_REQUEST, {**values, **changes})


def lanes(agent: Started) -> dict[str, list[Lane]]:
    """All of MIX, open."""
    sample = apply(kws.SCALE.affine[0], kws.data()[0][200:201])
    wanted = _expected(sample)

    def binary(body: bytes) -> None:
        _close(np.frombuffer(body[-4 * len(wanted) :], "<f4"), wanted)

    def listed(body: bytes) -> None:
        _close(np.array(json.loads(body)["outputs"][0]["data"], np.float32), wanted)

    def rows(body: bytes) -> None:
        _close(np.array(json.loads(body)["predictions"][0], np.float32), wanted)

    def message(body: bytes) -> None:
        (raw,) = wire.decode(oip_messages.INFER_RESPONSE, body)["raw_output_contents"]
        _close(np.frombuffer(raw, "<f4"), wanted)

    infer, predict = "/v2/models/kws/infer", "/v1/models/kws:predict"
    tensor = {"name": kws.INPUT, "datatype": "FP32", "shape": list(sample.shape)}
    flat = sample.ravel().tolist()
    asked = "/inference.GRPCInferenceService/ModelInfer"
    huge = {**tensor, "shape": [1 << 40, 49, 10, 1]}
    pages = [
        "/metrics",
        "/v2/models/stats",
        "/v2/models/kws",
        "/v1/models/kws",
        "/v2/health/ready",
        "/models",
    ]
    mistakes: list[tuple[bytes, int, Check | None]] = [
        (post(infer, {"inputs": [{**tensor, "data": flat[1:]}]}), 400, None),
        (post("/v2/models/nobody/infer", {"inputs": []}), 404, None),
        (post(infer, b'{"inputs": [' * 400), 400, None),
        (post(infer, {"inputs": [{**huge, "data": [1]}]}), 400, None),
        (post(predict, {"instances": [["text"]]}), 400, None),
        (get(infer), 405, None),
        (post(infer, {"inputs": [{**tensor, "data": [math.nan] * 490}]}), 400, None),
        (get("/no/such/path"), 404, None),
    ]
    both = agent.address, str(agent.unix)
    made: dict[str, list[Lane]] = {
        kind: [Lane(kind, address, [(binary_request(sample), 200, binary)]) for _ in range(LANES)]
        for kind, address in zip(("binary", "binary, Unix"), both, strict=True)
    }
    whole = post(infer, {"inputs": [{**tensor, "data": flat}]})
    of_rows = post(predict, {"instances": sample.tolist()})
    made["JSON"] = [Lane("JSON", both[0], [(whole, 200, listed)]) for _ in range(LANES)]
    made["TFS REST"] = [Lane("TFS REST", both[0], [(of_rows, 200, rows)]) for _ in range(LANES)]
    made["pages"] = [Lane("pages", one, [(get(page), 200, None) for page in pages]) for one in both]
    made["mistakes"] = [Lane("mistakes", one, mistakes) for one in both]
    for kind, address in zip(("gRPC", "gRPC, Unix"), both, strict=True):
        asks = [(asked, grpc_request(sample), 0, message)]
        made[kind] = [Streams(kind, address, asks) for _ in range(LANES)]  # type: ignore[arg-type]
    wrong: list[tuple[str, bytes, int, Check | None]] = [
        (asked, grpc_request(sample, model_name="nobody"), 5, None),
        (asked, grpc_request(sample)[:-100], 3, None),
        (asked, grpc_request(sample, raw_input_contents=[b"1"]), 3, None),
        ("/inference.GRPCInferenceService/Nothing", b"", 12, None),
    ]
    made["gRPC mistakes"] = [Streams("gRPC mistakes", one, wrong) for one in both]
    return made


_BROKEN = (
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 40000 + b"\r\n\r\n",
)


def visit(agent: Started, number: int) -> None:
    """A connection that comes, asks and goes: a good request, or broken HTTP. Raises Failed, OSError."""
    address = (agent.address, str(agent.unix))[number // 2 % 2]
    with connect(address) as sock:
        sock.settimeout(10)
        broken = number % 2
        sock.sendall(_BROKEN[number // 4 % len(_BROKEN)] if broken else get("/v2/health/ready"))
        sock.shutdown(socket.SHUT_WR)
        said = b""
        while more := sock.recv(_CHUNK):
            said += more
    if not said.startswith(b"HTTP/1.1 4" if broken else b"HTTP/1.1 200"):
        raise Failed(f"{said[:120]!r}")
