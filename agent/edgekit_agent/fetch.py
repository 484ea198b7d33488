"""Fetch a bundle over HTTPS with the device's certificate; resumes where an earlier attempt ended."""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import AuthError, ConfigError, InputError, SystemFault
from edgekit.files import storage_fault, sync_folder

KeepGoing = Callable[[], None]
"""Called between chunks; raises to stop."""

CHUNK = 64 * 1024
TIMEOUT_S = 20.0
SPARE_BYTES = 8 * 1024 * 1024
"""Left free on the disk, so that the journal can still be written."""


class NetworkFault(SystemFault):
    """The network failed; what arrived is kept, the next attempt goes on from there."""


class NoSpace(SystemFault):
    """The bundle does not fit on the disk; what had arrived was removed."""


def tls(ca: str, cert: str = "", key: str = "") -> ssl.SSLContext:
    """Verifies the server against `ca` only and shows the device's certificate. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror or str(exc)
        raise ConfigError(f"cannot use {cert or ca}: {reason}", "enrol the device again") from None
    return context


def download(
    base_url: str,
    path: str,
    size: int,
    to: Path,
    context: ssl.SSLContext,
    keep_going: KeepGoing,
) -> None:
    """Bring exactly `size` bytes of `base_url`/`path` to the file `to`, through `to`.part.

    `keep_going` is called between chunks and raises to stop. The caller verifies what arrived.
    Raises NetworkFault (try again), NoSpace, AuthError, InputError (the server refuses).
    """
    part = to.with_name(to.name + ".part")
    try:
        _check_space(part, size)
        with part.open("ab") as file:
            _fill(base_url, path, size, file.fileno(), context, keep_going)
            os.fsync(file.fileno())
        part.replace(to)
        sync_folder(to.parent)
    except OSError as exc:
        if isinstance(exc, ssl.SSLError) or exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise storage_fault(to, exc) from None
        part.unlink(missing_ok=True)
        raise NoSpace(f"the disk became full while fetching {size} bytes to {to.parent}", _ROOM) from None


_ROOM = "free some space; the previous release stays in service"


def _check_space(part: Path, size: int) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    free = shutil.disk_usage(part.parent).free
    if size - have + SPARE_BYTES > free:
        part.unlink(missing_ok=True)
        raise NoSpace(f"no space for a bundle of {size} bytes: {free} free in {part.parent}", _ROOM)


def _fill(
    base_url: str, path: str, size: int, fd: int, context: ssl.SSLContext, keep_going: KeepGoing
) -> None:
    have = os.fstat(fd).st_size
    if have == size:
        return
    url = urlsplit(base_url)
    connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=TIMEOUT_S, context=context)
    try:
        with _network(base_url):
            connection.request("GET", path, headers={"Range": f"bytes={have}-"} if have else {})
            response = connection.getresponse()
        _check_answer(response, path, size, have)
        if response.status == http.client.OK and have:
            os.ftruncate(fd, 0)
            have = 0
        while have < size:
            keep_going()
            with _network(base_url):
                # What has arrived, not a full chunk: a trickle must not keep us from `keep_going`.
                chunk = response.read1(min(CHUNK, size - have))
            if not chunk:
                raise NetworkFault(f"{base_url} closed the connection at {have} of {size} bytes")
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
            have += len(chunk)
    finally:
        connection.close()


class _network:
    """Turns what the network raises into NetworkFault; what the disk raises stays an OSError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, OSError | http.client.HTTPException):
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise NetworkFault(f"{self._url}: {reason}", "the download is resumed") from None


def _check_answer(response: http.client.HTTPResponse, path: str, size: int, have: int) -> None:
    status = response.status
    if status in (401, 403):
        raise AuthError(f"the fleet refuses {path} to this device ({status})", "is the device revoked?")
    if status in (404, 410):
        raise InputError(f"the fleet has no {path}", "publish the release again")
    if status not in (200, 206):
        raise NetworkFault(f"the fleet answered {status} for {path}")
    start, total = 0, response.getheader("Content-Length", "")
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.getheader("Content-Range", ""))
        if not found:
            raise NetworkFault(f"the fleet's answer for {path} has no usable Content-Range")
        start, total = int(found[1]), found[2]
        if start != have:
            raise NetworkFault(f"the fleet sent bytes from {start}, {have} were asked for")
    if total and (not total.isdecimal() or int(total) != size):
        raise InputError(f"{path} has {total[:20]} bytes, the assignment says {size}", "publish it again")
