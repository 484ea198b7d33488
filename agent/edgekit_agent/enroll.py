"""Enrolment: a one-time token buys a device certificate. Private keys are made here and stay here.

The token names the fleet and pins its CA, so the very first connection is already to the right fleet:
the CA certificate is fetched without trust, compared with the pin, and only then trusted.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import http.client
import json
import shutil
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekit import codec, profile
from edgekit.crypto import x509
from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.errors import AuthError, ConfigError, EdgekitError, InputError, SignatureError, SystemFault
from edgekit.files import storage_fault, sync_folder, write_bytes
from edgekit.wire import EnrollAnswer, EnrollRequest
from edgekit_agent import config

PREFIX = "ek1."
TIMEOUT_S = 30.0
MAX_ANSWER = 256 * 1024


@dataclass(frozen=True)
class Token:
    """What the fleet's operator hands to the device."""

    url: str
    ca_sha256: str
    """Hex SHA-256 of the CA's PEM file."""
    secret: str


def parse_token(text: str, url: str | None = None) -> Token:
    """`ek1.<base64url(JSON)>`; `url` replaces the token's address, never its pin. Raises AuthError."""
    body = text.strip().removeprefix(PREFIX)
    try:
        if not text.strip().startswith(PREFIX):
            raise ValueError("prefix")
        plain = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = codec.from_json(Token, plain, what="token", max_bytes=4096)
    except (binascii.Error, ValueError, EdgekitError):
        raise AuthError(
            "this is not an enrolment token", "copy all of what `edgekit fleet enroll` printed"
        ) from None
    if url:
        token = dataclasses.replace(token, url=url.rstrip("/"))
    if urlsplit(token.url).scheme != "https":
        raise AuthError("the fleet's address is not https", "make a new token")
    return token


def enroll(
    token: Token,
    folder: Path,
    *,
    device: str,
    profile_name: str,
    emulated: bool,
    serve: config.ServeSection,
    telemetry: config.TelemetrySection | None = None,
) -> Path:
    """Enrol and write the state folder; the path of its agent.toml.

    Everything is prepared in a folder beside it that gets its name at the end: there is a complete state
    folder or none. Raises AuthError (token unknown, used, expired), SystemFault, InputError.
    """
    if profile_name != "auto":
        profile_name = profile.get(profile_name).name
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as exc:
        raise storage_fault(folder, exc) from None
    try:
        key = x509.new_device_key()
        write_bytes(fresh / "device.key", key, mode=0o600)
        sealing = SealingKey.generate()
        sealing.save(fresh / "sealing.key")
        ca = _fetch_ca(token)
        request = EnrollRequest(
            token=token.secret,
            csr_pem=x509.make_csr(key, device or "device").decode(),
            sealing_key_pem=sealing.public().to_pem().decode(),
            profile=profile_name,
            device=device,
        )
        answer = _call(token.url, "/v1/enroll", request, _trusting(ca))
        _write(fresh, answer, profile_name, emulated, serve, telemetry or config.TelemetrySection())
        if folder.exists():
            folder.rmdir()
        fresh.chmod(0o700)
        fresh.rename(folder)
        sync_folder(folder.parent)
    except OSError as exc:
        raise storage_fault(folder, exc) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder / "agent.toml"


def _check_free(folder: Path) -> None:
    if (folder / "agent.toml").exists():
        raise InputError(f"{folder} holds an enrolled device already", "choose another --state, or remove it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder", "choose another --state")


def _write(
    folder: Path,
    answer: EnrollAnswer,
    profile_name: str,
    emulated: bool,
    serve: config.ServeSection,
    telemetry: config.TelemetrySection,
) -> None:
    certificate = answer.certificate_pem.encode()
    if x509.common_name(certificate) != answer.device:
        raise SignatureError("the fleet answered with a certificate for another device", "enrol again")
    files = {
        "device.pem": certificate,
        "ca.pem": answer.ca_pem.encode(),
        "assignment.pub": VerifyKey.from_pem(answer.assignment_key_pem.encode()).to_pem(),
    }
    builders = [f"builder-{n}.pub" for n in range(1, len(answer.builder_keys_pem) + 1)]
    for name, pem in zip(builders, answer.builder_keys_pem, strict=True):
        files[name] = VerifyKey.from_pem(pem.encode()).to_pem()
    for name, data in files.items():
        write_bytes(folder / name, data, mode=0o600)
    made = config.AgentConfig(
        device=config.DeviceSection(answer.device, profile_name, emulated, answer.tenant),
        serve=serve,
        telemetry=telemetry,
        fleet=config.FleetSection(
            answer.broker_host, answer.broker_port, answer.device_url, builder_keys=tuple(builders)
        ),
    )
    write_bytes(folder / "agent.toml", config.to_toml(made).encode(), mode=0o600)


def _fetch_ca(token: Token) -> bytes:
    """The fleet's CA certificate, which must be the one that the token pins."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    pem = _exchange(token.url, "GET", "/v1/ca", None, blind)
    if hashlib.sha256(pem).hexdigest() != token.ca_sha256:
        raise AuthError(
            f"{token.url} is not the fleet that made this token: its CA differs",
            "somebody may be in between; check the address, make a new token",
        )
    return pem


def _trusting(ca_pem: bytes) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca_pem.decode())
    except (ssl.SSLError, ValueError) as exc:
        raise AuthError(f"the fleet's CA certificate cannot be used: {exc}", "make a new token") from None


def _call(url: str, path: str, body: EnrollRequest, context: ssl.SSLContext) -> EnrollAnswer:
    answer = _exchange(url, "POST", path, codec.to_json(body), context)
    return codec.from_json(
        EnrollAnswer, answer, what=f"answer of {url}", max_bytes=MAX_ANSWER, error=ConfigError
    )


def _exchange(url: str, method: str, path: str, body: bytes | None, context: ssl.SSLContext) -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER)
    except ConnectionRefusedError:
        raise SystemFault(f"no fleet answers at {url}", "is `edgekit-fleet up` running there?") from None
    except socket.gaierror:
        raise SystemFault(f"{url}: unknown host", "check the network") from None
    except (OSError, http.client.HTTPException) as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise SystemFault(f"{url}: {reason}", "check the network and try again") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise _refusal(url, response.status, answer)
    return answer


def _refusal(url: str, status: int, answer: bytes) -> EdgekitError:
    try:
        plain = json.loads(answer)
        message, hint = str(plain["error"]), str(plain.get("hint", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint = f"{url} answered {status}", "look at the fleet's log"
    if status in (401, 403):
        return AuthError(message, hint or "make a new token")
    return SystemFault(message, hint) if status >= 500 else InputError(message, hint)
