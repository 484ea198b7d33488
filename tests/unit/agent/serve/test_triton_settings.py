"""Trace and log settings: the real logger's, changed back afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit_agent.serve import triton_settings as settings

LOGGER = logging.getLogger("edgekit_agent")


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    yield
    LOGGER.setLevel(level)


def test_logging_can_be_more_and_less_again() -> None:
    child = logging.getLogger("edgekit_agent.serve.core")
    assert settings.log()["log_info"] is False and settings.log()["log_verbose_level"] == 0
    assert settings.change_log({"log_info": True})["log_info"] is True
    assert child.isEnabledFor(logging.INFO) and not child.isEnabledFor(logging.DEBUG)
    assert settings.change_log({"log_verbose_level": 3})["log_verbose_level"] == 1
    assert child.isEnabledFor(logging.DEBUG)
    # DEBUG shows what INFO shows: less verbose alone leaves INFO on, as in Triton.
    assert settings.change_log({"log_verbose_level": 0})["log_info"] is True
    assert settings.change_log({"log_info": False, "log_warning": True, "log_file": ""})["log_info"] is False
    assert child.isEnabledFor(logging.WARNING) and not child.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nope": 1}, "unknown log setting 'nope'"),
        ({"log_info": 1}, "value of another kind"),
        ({"log_info": None}, "value of another kind"),
        ({"log_verbose_level": -1}, "value of another kind"),
        ({"log_verbose_level": True}, "value of another kind"),
        ({"log_error": False}, "cannot be changed"),
        ({"log_warning": False}, "cannot be changed"),
        ({"log_info": True, "log_file": "/etc/passwd"}, "cannot be changed"),
        ({"log_info": True, "log_format": "ISO8601"}, "cannot be changed"),
    ],
)
def test_nothing_is_hidden_or_written_elsewhere(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings.change_log(changes)
    assert LOGGER.level == logging.WARNING


def test_tracing_stays_off() -> None:
    assert settings.change_trace({"trace_level": ["OFF"], "trace_rate": None}) == settings.trace()
    for changes in ({"trace_level": ["TIMESTAMPS"]}, {"trace_file": "/tmp/x"}):
        with pytest.raises(InputError, match="not traced"):
            settings.change_trace(changes)
    with pytest.raises(InputError, match="unknown trace setting"):
        settings.change_trace({"nope": "1"})
