"""TLS: connections whose handshakes are right, and those that spoil what they send."""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import cache
from random import Random

from tests.fuzz import judge
from tests.fuzz.below import records
from tests.fuzz.case import Case, Wire
from tests.fuzz.judge import NoHttp
from tests.fuzz.mutate import garble
from tests.fuzz.work import Found, Whole, Work

ONE, TWO = "http/1.1", "h2"
_CHUNK = 1 << 18
_OFFERS = {ONE: ((ONE,), ()), TWO: ((TWO,), (TWO, ONE))}
_VERSIONS = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2)


@cache
def context(ca: str, offered: tuple[str, ...], version: ssl.TLSVersion) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(ca)
    made.minimum_version = made.maximum_version = version
    if offered:
        made.set_alpn_protocols(list(offered))
    return made


def wrapped(sock: socket.socket, ca: str, speaks: str, turn: int) -> ssl.SSLSocket:
    """`turn` chooses among offers of ALPN that end in `speaks`, and between TLS 1.2 and 1.3. Raises OSError,
    AssertionError (another protocol was agreed on)."""
    offered = _OFFERS[speaks][turn % 2]
    made = context(ca, offered, _VERSIONS[turn // 2 % 2]).wrap_socket(sock, server_hostname="127.0.0.1")
    agreed = made.selected_alpn_protocol()
    assert agreed == (speaks if offered else None), f"ALPN {offered} ended in {agreed}"
    return made


def read(sock: ssl.SSLSocket) -> bytes | None:
    """All that has come, nothing at the end of the stream; None when it was no data of ours."""
    found = b""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        while data := sock.recv(_CHUNK):
            found += data
    except (ssl.SSLWantReadError, BlockingIOError):
        return found or None
    except OSError:  # what came before it counts
        return found
    finally:
        sock.settimeout(timeout)
    return found


class Below(Whole):
    """What is no TLS, and the end of what we send."""

    wire = Wire.BELOW

    def __init__(self, sock: socket.socket, found: Found, case: Case) -> None:
        super().__init__(sock, found, case)
        self._data = b""

    def receive(self, data: bytes) -> bool:
        self._data += data
        if not data:
            self.found.add(self._case, *judge.of_records(self._data))
        return not data


class Spoilt(Whole):
    """A right handshake, and a request whose records are cut or changed; or the handshake's last one is."""

    wire = Wire.SPOILT

    def __init__(self, sock: socket.socket, found: Found, case: Case, ca: str) -> None:
        super().__init__(sock, found, case)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._chance = Random(case.number)
        version = _VERSIONS[0] if "finished" in case.protocol else _VERSIONS[case.number % 2]
        made = context(ca, (ONE,), version)
        self._tls = made.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self._touched = False
        """Whether the first record that matters was changed: nothing may be answered then."""
        self._failed = ""

    def start(self) -> None:
        try:
            last = self._shake()
            self.sock.sendall(self._spoil(last))
        except ssl.SSLError as exc:
            self._failed = f"no handshake: {exc}"
        except OSError:
            pass  # it hung up while we sent: that shows
        self._end()

    def _shake(self) -> bytes:
        """Our last flight, which is not sent."""
        while True:
            try:
                self._tls.do_handshake()
                return self._outgoing.read()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                data = self.sock.recv(_CHUNK)
                if not data:
                    raise ssl.SSLError("the agent hung up") from None
                self._incoming.write(data)

    def _spoil(self, last: bytes) -> bytes:
        rest = self._case.data
        while rest:
            rest = rest[self._tls.write(rest) :]
        if self._case.protocol.endswith("close"):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        sent = self._outgoing.read()
        if self._case.protocol.endswith("finished"):
            *before, finished = records(last)
            return b"".join(before) + self._changed(finished) + sent
        keep = self._case.protocol.endswith("close") and self._chance.random() < 0.5
        return last + (sent if keep else self._changed(sent))

    def _changed(self, sent: bytes) -> bytes:
        first = records(sent)[0]
        if self._chance.random() < 0.4:
            made = sent[: self._chance.randrange(len(sent))]
        else:
            made = garble(self._chance, sent)
        self._touched = not made.startswith(first)
        return made

    def receive(self, data: bytes) -> bool:
        self._incoming.write(data)
        if data:
            return False
        if self._failed:
            raise NoHttp(self._failed)
        said = b""
        with contextlib.suppress(ssl.SSLError):
            while more := self._tls.read(_CHUNK):
                said += more
        if said and self._touched:
            raise NoHttp(f"answers what was spoilt: {said[:200]!r}")
        status = said[9:12].decode("latin-1") if said else "closed"
        if said and (not said.startswith(b"HTTP/1.1 ") or int(status) not in judge.FINE | {100}):
            raise NoHttp(repr(said[:300]))
        self.found.add(self._case, status)
        return True


def work(sock: socket.socket, found: Found, case: Case, ca: str) -> Work:
    """Of what is wrong with TLS."""
    return Below(sock, found, case) if case.wire is Wire.BELOW else Spoilt(sock, found, case, ca)
