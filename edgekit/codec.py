"""JSON and TOML to frozen dataclasses and back: strict, bounded, and byte-for-byte reproducible.

Everything that crosses a trust boundary (bundle documents, messages, configuration) is a frozen
dataclass and goes through this module, so that unknown fields, wrong types and oversize input are
refused in one place. Types are checked by dacite.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args

import dacite

from edgekit.errors import ConfigError, EdgekitError

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


LATER: Mapping[str, Any] = {"edgekit.later": True}
"""Metadata of a field that joined its document after the document's first version: it is left out where
it has its default, so that what was written before still has one spelling."""


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. Dataclasses become objects."""
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def to_plain(value: Any) -> Any:
    """Dataclasses to dictionaries, tuples to lists; `None` and default `later` fields are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: to_plain(item) for f, item in fields if item is not None and not _omitted(f, item)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _omitted(field: dataclasses.Field[Any], item: Any) -> bool:
    if "edgekit.later" not in field.metadata:
        return False
    made = field.default_factory
    return bool(item == (field.default if made is dataclasses.MISSING else made()))


def parse_json(
    data: bytes,
    *,
    what: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    error: type[EdgekitError] = ConfigError,
) -> Any:
    """Bounded, duplicate-free JSON. Raises `error` with one line that begins with `what`."""
    if len(data) > max_bytes:
        raise error(f"{what}: {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
        if b"\\u" in data:  # half of a surrogate pair is no text: it could not be written anywhere again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise error(f"{what}: not valid JSON: {exc}") from None
    return value


def from_plain(
    cls: type[T], plain: Any, *, what: str, error: type[EdgekitError] = ConfigError, strict: bool = True
) -> T:
    """Dictionary to the dataclass `cls`; refuses wrong types and, unless not `strict`, unknown fields."""
    if not isinstance(plain, dict):
        raise error(f"{what}: expected an object, got {type(plain).__name__}")
    try:
        # Lists become tuples here: dacite's own cast would also make a tuple of the letters of a string.
        return dacite.from_dict(cls, _tuples(plain), dacite.Config(strict=strict, cast=[Enum]))
    except dacite.WrongTypeError as exc:
        if isinstance(exc.value, dict) and isinstance(exc.value.get("kind"), str):  # one of several classes
            kind = exc.value["kind"]
            raise error(
                f"{what}: {exc.field_path}: no {kind[:40]!r} with such fields", "update edgekit"
            ) from None
        wanted = str(exc.field_type) if get_args(exc.field_type) else getattr(exc.field_type, "__name__", "?")
        wanted = wanted.replace("typing.", "")
        # Of a string where a tuple is wanted dacite hands us a generator's name instead of the value.
        lost = wanted.startswith("tuple") and not isinstance(exc.value, tuple)
        found = "a single value" if lost else reprlib.repr(exc.value)
        raise error(f"{what}: {exc.field_path} should be {wanted}, is {found}") from None
    except dacite.DaciteError as exc:
        raise error(f"{what}: {exc}") from None
    except (TypeError, ValueError, RecursionError) as exc:
        raise error(f"{what}: does not fit {cls.__name__}: {exc}") from None


def from_json(
    cls: type[T],
    data: bytes,
    *,
    what: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    error: type[EdgekitError] = ConfigError,
) -> T:
    """`parse_json` then `from_plain`."""
    return from_plain(
        cls, parse_json(data, what=what, max_bytes=max_bytes, error=error), what=what, error=error
    )


def from_canonical_json(
    cls: type[T],
    data: bytes,
    *,
    what: str,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    error: type[EdgekitError] = ConfigError,
) -> T:
    """`from_json` of what `to_json` wrote: any other spelling of the same value is refused."""
    value = from_json(cls, data, what=what, max_bytes=max_bytes, error=error)
    try:
        canonical = to_json(value) == data
    except ValueError:  # lone surrogates, infinite numbers: json reads them, to_json never writes them
        canonical = False
    if not canonical:
        raise error(f"{what}: not in canonical form", "it was edited or damaged; fetch it again")
    return value


def from_toml(cls: type[T], path: Path, *, error: type[EdgekitError] = ConfigError) -> T:
    """Read a TOML file into the dataclass `cls`."""
    import tomllib  # the serving process reads none

    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise error(f"{path}: {exc.strerror}", "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise error(f"{path}: not valid TOML: {exc}") from None
    return from_plain(cls, plain, what=str(path), error=error)


def _tuples(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _tuples(item) for key, item in plain.items()}
    return tuple(_tuples(item) for item in plain) if isinstance(plain, list | tuple) else plain


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")
