"""How this program's log looks: lines for people, or one JSON object per line for collectors."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

Format = Literal["text", "json"]
Requests = Literal["none", "failed", "all"]

FIELDS = "fields"
"""`extra={FIELDS: {...}}` of a log call: what belongs to the event beside its message."""


class Json(logging.Formatter):
    """{"at", "level", "logger", "process", "message", ...fields, "traceback"}."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, separators=(",", ":"), default=str)


class Text(logging.Formatter):
    """One line; fields follow as name=value, quoted as JSON where they hold anything but plain text."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, {})
        return " ".join([super().format(record), *(f"{key}={_word(value)}" for key, value in fields.items())])


def setup(form: Format, level: int, process: str) -> None:
    """Log to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(Json(process) if form == "json" else Text(line))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _word(value: Any) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(' "=\\') & set(text)
    return text if plain and text else json.dumps(text)
