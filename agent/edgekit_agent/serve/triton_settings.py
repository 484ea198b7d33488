"""Triton's trace and log settings: what there is to see and to change here, over HTTP and gRPC alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from edgekit.errors import InputError

_TRACE: dict[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
_LOGGER = logging.getLogger("edgekit_agent")


def trace() -> dict[str, Any]:
    """There is no tracing to files: statistics and /metrics have the timings."""
    return dict(_TRACE)


def change_trace(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings after `changes`; None stands for the default. Raises InputError for any real change."""
    for name, value in changes.items():
        if name not in _TRACE:
            raise InputError(f"unknown trace setting {name[:80]!r}")
        if value is not None and value != _TRACE[name]:
            raise InputError("requests are not traced to files", "see the statistics, and /metrics")
    return trace()


def log() -> dict[str, Any]:
    """Of the serving process."""
    level = _LOGGER.getEffectiveLevel()
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "default",
    }


def change_log(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings after `changes`. More may be logged, or again less, but never less than warnings.

    Raises InputError, and then changes nothing.
    """
    now = log()
    for name, value in changes.items():
        if name not in now:
            raise InputError(f"unknown log setting {name[:80]!r}")
        if type(value) is not type(now[name]) or (name == "log_verbose_level" and not 0 <= value <= 9):
            raise InputError(f"log setting {name!r} has a value of another kind")
        if name not in ("log_info", "log_verbose_level") and value != now[name]:
            raise InputError(
                f"log setting {name!r} cannot be changed", "it belongs to the agent's supervisor"
            )
    wanted = {**now, **changes}
    if wanted["log_verbose_level"]:
        _LOGGER.setLevel(logging.DEBUG)
    else:
        _LOGGER.setLevel(logging.INFO if wanted["log_info"] else logging.WARNING)
    return log()
