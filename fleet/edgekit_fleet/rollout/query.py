"""The target query language: which devices a rollout, or a phase of it, is for.

    query  := or ;  or := and ("or" and)* ;  and := not ("and" not)* ;  not := "not" not | atom
    atom   := "(" or ")" | field op value | field "in" "(" value ("," value)* ")" | flag | "tag:" name
    op     := "==" | "!=" | "~" | "!~"          (~ is a shell-style glob: * ? [abc])
    field  := id | profile | release | architecture | variant | tag:<name>
    flag   := online | emulated | all
    value  := "text" | 'text' | bare-word

An empty query and `all` mean every device. A device without a tag differs from every value of it.
`tag:site` alone asks whether the tag is there.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from edgekit.errors import ConfigError

MAX_LENGTH = 2000
MAX_DEPTH = 40
FIELDS = ("id", "profile", "release", "architecture", "variant")
FLAGS = ("online", "emulated", "all")
EXAMPLE = """e.g. profile == "jetson" and tag:site == "lab" and not id in ("cam-1", "cam-2")"""


class QueryError(ConfigError):
    """A target query that does not parse; the message names the column, counted from 1."""


@dataclass(frozen=True)
class Target:
    """What a query can see of a device."""

    id: str
    profile: str = ""
    release: str = ""
    architecture: str = ""
    variant: str = ""
    online: bool = False
    emulated: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


Predicate = Callable[[Target], bool]
T = TypeVar("T", bound=Target)


def select(query: str, devices: Iterable[T]) -> list[T]:
    """The devices that match, in their order. Raises QueryError."""
    matches = compile_query(query)
    return [device for device in devices if matches(device)]


@lru_cache(maxsize=256)
def compile_query(query: str) -> Predicate:
    """A predicate over Target. Raises QueryError with the column of the first mistake."""
    if len(query) > MAX_LENGTH:
        raise QueryError(f"target query: {len(query)} characters, more than the {MAX_LENGTH} allowed")
    tokens = _tokens(query)
    return _every if tokens[0].kind == "end" else _Parser(tokens).parse()


def _every(_: Target) -> bool:
    return True


@dataclass(frozen=True)
class _Token:
    kind: str
    """word, text, op, end"""
    text: str
    column: int


_LEXER = re.compile(
    r"""(?P<space>\s+)
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<op>==|!=|!~|~|\(|\)|,)
      | (?P<word>[^\s"'()=!~,]+)""",
    re.VERBOSE | re.DOTALL,
)


def _tokens(query: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(query):
        match = _LEXER.match(query, at)
        if match is None:
            what = "a text without its closing quote" if query[at] in "\"'" else f"unexpected {query[at]!r}"
            raise _error(at + 1, what)
        kind = match.lastgroup or ""
        text = match.group()
        if kind == "text":
            text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        if kind != "space":
            tokens.append(_Token(kind, text, at + 1))
        at = match.end()
    return [*tokens, _Token("end", "", at + 1)]


class _Parser:
    """Recursive descent over the tokens of one query; depth is bounded."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def parse(self) -> Predicate:
        result = self._or()
        if self._now.kind != "end":
            raise _error(self._now.column, f"expected `and`, `or` or the end, got {self._now.text!r}")
        return result

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._now
        self._at += token.kind != "end"
        return token

    def _skip(self, kind: str, text: str) -> bool:
        found = self._now.kind == kind and self._now.text == text
        self._at += found
        return found

    def _or(self) -> Predicate:
        parts = [self._and()]
        while self._skip("word", "or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else _any(parts)

    def _and(self) -> Predicate:
        parts = [self._not()]
        while self._skip("word", "and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else _all(parts)

    def _not(self) -> Predicate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(self._now.column, f"nested deeper than {MAX_DEPTH}")
        if self._skip("word", "not"):
            inner = self._not()
            result: Predicate = lambda device: not inner(device)  # noqa: E731
        else:
            result = self._atom()
        self._depth -= 1
        return result

    def _atom(self) -> Predicate:
        if self._skip("op", "("):
            result = self._or()
            if not self._skip("op", ")"):
                raise _error(self._now.column, "expected `)`")
            return result
        token = self._take()
        if token.kind != "word" or token.text in ("and", "or", "in"):
            raise _error(
                token.column, f"expected a field, got {token.text!r}" if token.text else "it ends here"
            )
        if token.text in FLAGS:
            return _flag(token.text)
        read = _reader(token)
        return self._comparison(token, read)

    def _comparison(self, name: _Token, read: Callable[[Target], str | None]) -> Predicate:
        if self._skip("word", "in"):
            values = frozenset(self._values())
            return lambda device: read(device) in values
        operator = self._now.text if self._now.kind == "op" else ""
        if operator not in ("==", "!=", "~", "!~"):
            if name.text.startswith("tag:"):
                return lambda device: read(device) is not None
            raise _error(self._now.column, f"expected ==, !=, ~, !~ or `in` after {name.text!r}")
        self._take()
        value = self._value()
        positive = _equals(read, value) if operator in ("==", "!=") else _like(read, value)
        return positive if operator in ("==", "~") else lambda device: not positive(device)

    def _values(self) -> list[str]:
        if not self._skip("op", "("):
            raise _error(self._now.column, "expected `(` after `in`")
        values = [self._value()]
        while self._skip("op", ","):
            values.append(self._value())
        if not self._skip("op", ")"):
            raise _error(self._now.column, "expected `,` or `)`")
        return values

    def _value(self) -> str:
        token = self._take()
        if token.kind not in ("word", "text"):
            raise _error(
                token.column, f"expected a value, got {token.text!r}" if token.text else "expected a value"
            )
        return token.text


def _any(parts: Sequence[Predicate]) -> Predicate:
    return lambda device: any(part(device) for part in parts)


def _all(parts: Sequence[Predicate]) -> Predicate:
    return lambda device: all(part(device) for part in parts)


def _equals(read: Callable[[Target], str | None], value: str) -> Predicate:
    return lambda device: read(device) == value


def _like(read: Callable[[Target], str | None], pattern: str) -> Predicate:
    def matches(device: Target) -> bool:
        value = read(device)
        return value is not None and fnmatch.fnmatchcase(value, pattern)

    return matches


def _flag(name: str) -> Predicate:
    if name == "online":
        return lambda device: device.online
    return (lambda device: device.emulated) if name == "emulated" else _every


def _reader(token: _Token) -> Callable[[Target], str | None]:
    if token.text.startswith("tag:"):
        name = token.text.removeprefix("tag:")
        if not name:
            raise _error(token.column, "a tag without its name")
        return lambda device: device.tags.get(name)
    if token.text not in FIELDS:
        known = ", ".join((*FIELDS, "tag:<name>", *FLAGS))
        raise _error(token.column, f"unknown field {token.text!r}, known are {known}")
    attribute = token.text
    return lambda device: str(getattr(device, attribute))


def _error(column: int, what: str) -> QueryError:
    return QueryError(f"target query, column {column}: {what}", EXAMPLE)
