"""HTTPS to the fleet's admin API with the standard library; every failure is one line and a hint."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from edgekit import codec
from edgekit.errors import AuthError, ConfigError, InputError, SystemFault

STATE_VARIABLE = "EDGEKIT_FLEET_STATE"
DEFAULT_STATE = "edgekit-fleet-state"
TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Connection:
    """Where the fleet is, and what proves who we are and who it is."""

    url: str
    token: str
    ca: Path | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every fleet command takes."""
    group = parser.add_argument_group("which fleet")
    state = os.environ.get(STATE_VARIABLE, DEFAULT_STATE)
    group.add_argument(
        "--state",
        type=Path,
        default=Path(state),
        metavar="DIR",
        help=f"state folder of a fleet on this machine (default: ${STATE_VARIABLE} or {DEFAULT_STATE})",
    )
    group.add_argument("--url", help="address of a fleet elsewhere, e.g. https://fleet.local:8443")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the admin token")
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificate of the fleet's CA")
    parser.add_argument("--json", action="store_true", help="answer as JSON")


def connection(args: argparse.Namespace) -> Connection:
    """From the options of `add_options`. Raises ConfigError.

    A state folder tells all three: fleet.json (the address, while the fleet runs), admin.token and
    ca/ca.pem. Options go before it.
    """
    state: Path = args.state
    url: str = args.url or _address(state)
    hint = "give the file with --token-file, or the fleet's state folder with --state"
    token = _read(args.token_file or state / "admin.token", hint)
    if not (token.isascii() and token.isprintable() and " " not in token):
        where = args.token_file or state / "admin.token"
        raise ConfigError(f"{where} does not hold an admin token", "it is one line of letters and digits")
    ca: Path | None = args.ca
    if ca is None and (state / "ca" / "ca.pem").exists():
        ca = state / "ca" / "ca.pem"
    if ca is not None:
        _read(ca, "give the certificate of the fleet's CA with --ca")
    if urlsplit(url).scheme != "https":
        raise ConfigError(f"{url!r} is not an https address", "write it as https://HOST:PORT")
    return Connection(url.rstrip("/"), token, ca)


def _address(state: Path) -> str:
    path = state / "fleet.json"
    if state.is_dir() and not path.exists():
        hint = f"start it: edgekit-fleet up --state {state}"
        raise SystemFault(f"no running fleet in {state}", hint)
    text = _read(path, "give the fleet's state folder with --state, or its address with --url")
    info = codec.parse_json(text.encode(), what=str(path))
    url = info.get("url") if isinstance(info, dict) else None
    if not isinstance(url, str):
        raise ConfigError(f"{path}: no address in it", "give it with --url")
    return url


def _read(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise ConfigError(f"cannot read {path}: {reason}", hint) from None


def call(
    to: Connection,
    method: str,
    path: str,
    body: Any = None,
    *,
    upload: tuple[BinaryIO, int] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """The parsed JSON answer. `upload` is (file, bytes). Raises AuthError, InputError, SystemFault."""
    headers = {"Authorization": f"Bearer {to.token}", "Accept": "application/json"}
    data: bytes | BinaryIO | None = None
    if upload is not None:
        data, headers["Content-Length"] = upload[0], str(upload[1])
        headers["Content-Type"] = "application/octet-stream"
    elif body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    status, answer = _exchange(to, method, path, data, headers, timeout_s)
    if status >= 400:
        raise _refusal(to, status, answer)
    return codec.parse_json(answer, what=f"answer of {to.url}", max_bytes=MAX_ANSWER_BYTES) if answer else {}


def _exchange(
    to: Connection,
    method: str,
    path: str,
    data: bytes | BinaryIO | None,
    headers: Mapping[str, str],
    timeout_s: float,
) -> tuple[int, bytes]:
    parts = urlsplit(to.url)
    try:
        context = ssl.create_default_context(cafile=to.ca)
        http_ = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=timeout_s, context=context
        )
        try:
            http_.request(method, path, body=data, headers=dict(headers))
            response = http_.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES + 1)
        finally:
            http_.close()
    except ssl.SSLCertVerificationError as exc:
        hint = "give the fleet's own CA with --ca (its state folder has ca/ca.pem)"
        raise SystemFault(f"{to.url}: its certificate is not trusted: {exc.verify_message}", hint) from None
    except ssl.SSLError as exc:
        raise SystemFault(
            f"{to.url}: TLS failed: {exc.reason or exc}", "is it the admin API's port?"
        ) from None
    except ConnectionRefusedError:
        hint = "start it with `edgekit-fleet up`, or check --state or --url"
        raise SystemFault(f"no fleet answers at {to.url}", hint) from None
    except socket.gaierror:
        raise SystemFault(f"{to.url}: unknown host", "check --url") from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise SystemFault(f"{to.url}: {reason}", "is the fleet running?") from None


def _refusal(to: Connection, status: int, answer: bytes) -> Exception:
    try:
        plain = json.loads(answer)
        message, hint = str(plain["error"]), str(plain.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint = f"{to.url} answered {status}", "look at the fleet's log"
    if status in (401, 403):
        return AuthError(message, hint or "check --token-file: STATE/admin.token of that fleet")
    return SystemFault(message, hint) if status >= 500 else InputError(message, hint)
