"""`--phase NAME:SIZE,key=value,...` to what the fleet's API takes; the fleet checks the values."""

from __future__ import annotations

import re
from typing import Any

from edgekit.errors import InputError

_KEYS = {
    "success": "success",
    "errors": "errors",
    "min": "min_executed",
    "soak": "soak_s",
    "deadline": "deadline_s",
    "on_success": "on_success",
    "on_error": "on_error",
    "where": "where",
}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EXAMPLE = 'e.g. --phase "canary:1,success=100,errors=0,soak=5" --phase "rest,errors=10%,soak=1m"'


def parse(text: str) -> dict[str, Any]:
    """One phase as a JSON object. Raises InputError; the hint is an example.

    `where=` takes the rest of the text, commas included, so it comes last.
    """
    text, found, where = text.partition(",where=")
    head, *options = text.split(",")
    name, _, size = head.partition(":")
    phase: dict[str, Any] = {"name": name.strip(), "size": size.strip() or "rest"}
    if found:
        phase["where"] = where
    for option in options:
        key, equals, value = option.strip().partition("=")
        if not equals or key not in _KEYS:
            raise _error(text, f"{option.strip()!r} is none of {', '.join(f'{k}=' for k in _KEYS)}")
        phase.update(_value(text, key, value.strip()))
    return phase


def _value(text: str, key: str, value: str) -> dict[str, Any]:
    if key in ("on_success", "on_error"):
        return {key: {"next": "NEXTGROUP"}.get(value.lower(), value.upper())}
    if key == "errors" and value.endswith("%"):
        return {"errors_percent": _number(text, key, value[:-1])}
    if key in ("errors", "min"):
        if not value.isdecimal():
            raise _error(text, f"{key}={value!r} is not a whole number")
        return {_KEYS[key]: int(value)}
    if key in ("soak", "deadline"):
        return {_KEYS[key]: seconds(value)}
    return {key: _number(text, key, value.removesuffix("%"))}


def _number(text: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _error(text, f"{key}={value!r} is not a number") from None


def seconds(text: str) -> float:
    """ "90", "90s", "1.5m", "2h", "1d" in seconds. Raises InputError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a time", "write seconds or 5s, 10m, 2h, 1d")
    return float(match[1]) * _UNITS[match[2]]


def _error(text: str, what: str) -> InputError:
    return InputError(f"phase {text!r}: {what}", EXAMPLE)
