"""What a caller may set, checked once and turned into what calls and connections need."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.client._address import choose
from edgekit.client._calls import Settings
from edgekit.errors import InputError

if TYPE_CHECKING:
    import ssl

_TOKEN = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True)
class Tls:
    """PEM files; empty: none."""

    ca: str = ""
    """Who signs the agent's certificate; empty: the system's authorities."""
    cert: str = ""
    """The client's own certificate (and key, unless `key` names another file)."""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Raises InputError: a file that is missing or not what it should be."""
        import ssl  # 15 ms that plain connections need not pay

        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ssl.SSLError) as exc:
            files = ", ".join(filter(None, (self.ca, self.cert, self.key)))
            raise InputError(
                f"cannot use {files} for TLS: {exc}", "are they PEM files of one pair?"
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def settings(
    address: str | Path | Sequence[str | Path] | None,
    *,
    model: str,
    token: str,
    timeout_s: float,
    retries: int,
    connections: int,
    max_answer_mib: int,
    shared_memory: bool,
) -> Settings:
    """Raises InputError."""
    addresses = choose(address)
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InputError(f"timeout_s is {timeout_s}", "give seconds, more than 0")
    if retries < 0 or connections < 1 or max_answer_mib < 1:
        raise InputError("retries may not be negative; connections and max_answer_mib are at least 1")
    lines = "Accept: */*\r\n"
    if token:
        if not _TOKEN.fullmatch(token):
            raise InputError("the token holds characters that no token has", "copy it whole, in one line")
        for one in addresses:
            if not one.tls and not one.is_local:
                raise InputError(
                    f"a token must not travel to {one} in the clear", f"use https://{one.authority}"
                )
        lines += f"Authorization: Bearer {token}\r\n"
    return Settings(addresses, model, timeout_s, retries, lines, max_answer_mib << 20, shared_memory)
