"""The numbered cases of a fuzz run: case N of a seed and a target is always the same bytes. Pure."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from tests.attacks.http_cases import REFUSED
from tests.fuzz import guards, targets
from tests.fuzz import seeds as valid
from tests.fuzz.below import below
from tests.fuzz.calls import call_frames, plain_call, stream
from tests.fuzz.case import GROUP, Case, Wire
from tests.fuzz.mutate import bend, dumped, garble, twist
from tests.fuzz.pieces import framed, large, odd_headers, odd_path
from tests.fuzz.script import script
from tests.fuzz.seeds import Call, Headers, Seed, Seeds

_SHARES = {
    "": ((Wire.KEPT, 0.6), (Wire.CALL, 0.82), (Wire.RAW, 0.92), (Wire.FRAMES, 1.0)),
    guards.TOKENS: ((Wire.KEPT, 0.5), (Wire.CALL, 0.9), (Wire.RAW, 0.95), (Wire.FRAMES, 1.0)),
    # Of TLS little that needs a connection of its own: handshakes are dear.
    guards.TLS: (
        (Wire.KEPT, 0.55), (Wire.CALL, 0.82), (Wire.RAW, 0.85), (Wire.FRAMES, 0.88), (Wire.BELOW, 0.95),
        (Wire.SPOILT, 1.0),
    ),
}  # fmt: skip
"""By guard: kinds, and where each ends between 0 and 1."""


@dataclass(frozen=True)
class Source:
    """Of a target: what its cases are made from."""

    seed: int
    seeds: Seeds
    files_share: float
    bodies: Sequence[bytes]
    guard: str = ""

    @staticmethod
    @cache
    def of(target: str, seed: int) -> Source:
        made = targets.ALL[target]()
        found = valid.seeds(made)
        if made.guard == guards.TOKENS:
            found = _with_token(found)
        share = 0.0 if not found.files else 0.05 if target == "sound" else 0.3
        bodies = [b"".join(one.parts()) for one in [*found.http, *found.files]]
        return Source(seed, found, share, bodies, made.guard)

    def wire(self, number: int) -> Wire:
        """Of all cases of a group."""
        roll = Random(self.seed << 40 | number // GROUP).random()
        return next(wire for wire, until in _SHARES[self.guard] if roll < until)

    def case(self, number: int) -> Case:
        chance = Random(self.seed << 40 | 1 << 39 | number)
        wire = self.wire(number)
        if wire in (Wire.BELOW, Wire.SPOILT):
            return self._spoilt(chance, number, wire)
        if self.guard == guards.TOKENS and wire in (Wire.KEPT, Wire.CALL) and chance.random() < 0.5:
            return self._denied(chance, number, wire)
        if wire is Wire.KEPT:
            return self._kept(chance, number)
        if wire is Wire.CALL:
            return self._call(chance, number) if chance.random() < 0.75 else self._over_two(chance, number)
        if wire is Wire.RAW:
            return self._raw(chance, number)
        call = chance.choice(self.seeds.calls)
        data = script(
            chance, [call_frames(chance, call, call.message) for _ in range(chance.randrange(1, 4))]
        )
        return Case(number, wire, "frames", data)

    # --- HTTP

    def _seed(self, chance: Random) -> Seed:
        roll = chance.random()
        if roll < self.files_share:
            return chance.choice(self.seeds.files)
        return chance.choice(self.seeds.pages if roll > 0.75 else self.seeds.http)

    def _kept(self, chance: Random, number: int) -> Case:
        seed = self._seed(chance)
        method, path, headers, body = self._request(chance, seed)
        version = b"1.1" if chance.random() < 0.98 else b"1.0"
        data = framed(chance, method, path, headers, body, version)
        close = any(name.lower() == b"connection" and b"close" in value.lower() for name, value in headers)
        return Case(
            number, Wire.KEPT, seed.protocol, data, bare=method == b"HEAD", last=close or version == b"1.0"
        )

    def _raw(self, chance: Random, number: int) -> Case:
        if chance.random() < 0.25:
            data = chance.choice(list(REFUSED.values()))
            data = garble(chance, data, self.bodies) if chance.random() < 0.7 else data
            return Case(number, Wire.RAW, "http-smuggling", data)
        seed = self._seed(chance)
        data = b""
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            method, path, headers, body = self._request(chance, seed)
            data += framed(chance, method, path, headers, body, b"1.1")
        head, mark, rest = data.partition(b"\r\n\r\n")
        if chance.random() < 0.7:
            head = garble(chance, head, list(REFUSED.values()))
        else:
            rest = garble(chance, rest, self.bodies)
        return Case(number, Wire.RAW, seed.protocol, head + mark + rest)

    def _over_two(self, chance: Random, number: int) -> Case:
        """HTTP without gRPC, over HTTP/2."""
        seed = self._seed(chance)
        method, path, headers, body = self._request(chance, seed)
        fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
        fields += [(name.lower(), value) for name, value in headers]
        if chance.random() < 0.5:
            length = len(body) if chance.random() < 0.8 else chance.choice((0, len(body) + 1, 1 << 40))
            fields.append((b"content-length", str(length).encode()))
        data = stream(chance, fields, body)
        return Case(number, Wire.CALL, f"h2 {seed.protocol}", data, bare=method == b"HEAD", loose=True)

    def _request(self, chance: Random, seed: Seed) -> tuple[bytes, bytes, Headers, bytes]:
        """Method, path, header fields and body of a mutated request."""
        method, path, headers = seed.method, seed.path, seed.headers
        document, tail = seed.document, seed.body
        odd = chance.random()
        if document is not None and odd < 0.5:
            document = twist(chance, document)
        head = b"" if document is None else dumped(document)
        if document is not None and 0.5 <= odd < 0.62:
            head = garble(chance, head, self.bodies)
        elif tail and (0.62 <= odd < 0.75 or (document is None and odd < 0.75)):
            tail = garble(chance, tail, self.bodies)
        elif 0.75 <= odd < 0.85:
            path = odd_path(chance, path)
        elif 0.85 <= odd < 0.9:
            method = chance.choice(
                (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
            )
        if seed.binary:
            size = len(head)
            if chance.random() < 0.06:
                size += chance.choice((-1, 1, len(tail), -size, 1 << 33, -size - 1))
            headers = (*headers, (b"Inference-Header-Content-Length", str(size).encode()))
        body = head + tail
        if chance.random() < 0.2:
            headers, body = odd_headers(chance, headers, body)
        if chance.random() < 0.002:
            body = large(chance, body)
        return method, path, headers, body

    # --- gRPC

    def _call(self, chance: Random, number: int) -> Case:
        call = chance.choice(self.seeds.calls)
        message = call.message
        if chance.random() < 0.85:
            if call.protocol == "grpc-compressed":
                plain = bend(chance, gzip.decompress(message))
                message = (
                    garble(chance, message) if chance.random() < 0.4 else gzip.compress(plain, 1, mtime=0)
                )
            else:
                message = bend(chance, message) if chance.random() < 0.8 else garble(chance, message)
        data = call_frames(chance, call, message)
        return Case(number, Wire.CALL, call.protocol, data, grpc=True, loose=True)

    # --- what guards a port

    def _spoilt(self, chance: Random, number: int, wire: Wire) -> Case:
        """TLS, with something wrong in it."""
        seed = self._seed(chance)
        clear = framed(chance, seed.method, seed.path, _fields(seed), b"".join(seed.parts()), b"1.1")
        if wire is Wire.BELOW:
            name, data = below(chance, clear)
            return Case(number, wire, f"below {name}", data)
        return Case(number, wire, f"below {chance.choice(('finished', 'record', 'record', 'close'))}", clear)

    def _denied(self, chance: Random, number: int, wire: Wire) -> Case:
        """A valid request without a token that lets it in."""
        if wire is Wire.CALL and chance.random() < 0.75:
            return self._denied_call(chance, number)
        seed, wanted = self._seed(chance), ""
        while not (wanted := guards.need(seed.method, seed.path)):
            seed = self._seed(chance)
        shown, status = guards.refused(chance, wanted)
        body = b"".join(seed.parts())
        headers = tuple(one for one in _fields(seed) if one != guards.AUTHORIZATION)
        headers += () if shown is None else ((b"Authorization", shown),)
        if wire is Wire.KEPT:
            data = framed(chance, seed.method, seed.path, headers, body, b"1.1")
            return Case(number, wire, f"denied {seed.protocol}", data, denied=status)
        fields = [
            (b":method", seed.method),
            (b":scheme", b"http"),
            (b":path", seed.path),
            (b":authority", b"x"),
        ]
        fields += [(name.lower(), value) for name, value in headers]
        return Case(number, wire, f"denied h2 {seed.protocol}", stream(chance, fields, body), denied=status)

    def _denied_call(self, chance: Random, number: int) -> Case:
        call, wanted = chance.choice(self.seeds.calls), ""
        while not (wanted := guards.need_of_call(call.path)):
            call = chance.choice(self.seeds.calls)
        shown, status = guards.refused(chance, wanted)
        headers = tuple(one for one in call.headers if one[0] != b"authorization")
        headers += () if shown is None else ((b"authorization", shown),)
        data = plain_call(dataclasses.replace(call, headers=headers))
        return Case(number, Wire.CALL, f"denied {call.protocol}", data, grpc=True, denied=status)


def _fields(seed: Seed) -> Headers:
    """Header fields of the request as it is."""
    size = str(len(seed.parts()[0])).encode()
    return (*seed.headers, *(((b"Inference-Header-Content-Length", size),) if seed.binary else ()))


def _with_token(found: Seeds) -> Seeds:
    """All with the token that lets them in."""
    shown = (guards.AUTHORIZATION[0].lower(), guards.AUTHORIZATION[1])

    def seed(one: Seed) -> Seed:
        return dataclasses.replace(one, headers=(*one.headers, guards.AUTHORIZATION))

    def call(one: Call) -> Call:
        return dataclasses.replace(one, headers=(*one.headers, shown))

    return Seeds(
        [seed(one) for one in found.http], [seed(one) for one in found.pages],
        [seed(one) for one in found.files], [call(one) for one in found.calls],
    )  # fmt: skip
