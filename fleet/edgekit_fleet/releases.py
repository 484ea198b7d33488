"""Releases: a bundle is verified against the trusted builders, kept as it came, and assigned to devices.

The content key is unsealed once with the fleet's sealing key, to prove that it can be, and stored sealed
to the same key again; it is in plain only for the moment in which it is sealed to a device.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, desc, insert, select, update

from edgekit import bundle
from edgekit.codec import to_json
from edgekit.crypto import dsse, sealing
from edgekit.crypto.keys import RecipientKey
from edgekit.errors import DecryptError, InputError, SignatureError
from edgekit.files import storage_fault, sync_folder
from edgekit.wire import ASSIGNMENT_TYPE, TENANT, Assignment
from edgekit_fleet import audit
from edgekit_fleet.config import Keys, State, trusted_keys
from edgekit_fleet.db import Database, devices, note, releases
from edgekit_fleet.devices import Unknown

MAX_BUNDLE_BYTES = 16 * 1024**3
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Conflict(InputError):
    """It exists already, and is something else."""

    http_status = 409


class TooLarge(InputError):
    """The body is larger than allowed."""

    http_status = 413


@dataclass(frozen=True)
class Terms:
    """What an assignment asks of the device besides running the release; see wire.Assignment."""

    deadline_s: float
    watch_s: float
    max_error_rate: float
    max_latency_p95_ms: float = 0.0


class Upload:
    """A bundle on its way in: bytes go to a temporary file beside the releases, with their digest."""

    def __init__(self, state: State, limit: int = MAX_BUNDLE_BYTES) -> None:
        self._limit = limit
        self._hash = hashlib.sha256()
        self.size = 0
        try:
            # Beside its final place, so that publishing is one rename.
            descriptor, name = tempfile.mkstemp(dir=state.releases, prefix=".upload-")
        except OSError as exc:
            raise storage_fault(state.releases, exc) from None
        self.path = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, chunk: bytes) -> None:
        """Raises TooLarge, SystemFault (full disk)."""
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLarge(f"the bundle has more than {self._limit} bytes", "publish a smaller bundle")
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as exc:
            raise storage_fault(self.path, exc) from None

    def finish(self) -> str:
        """Flush to disk; hex SHA-256 of the file."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as exc:
            raise storage_fault(self.path, exc) from None
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Remove what is left; nothing after a successful `publish`."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def publish(
    db: Database, keys: Keys, state: State, upload: Upload, actor: str
) -> tuple[dict[str, Any], bool]:
    """(the release, whether it is new). Raises BundleError, Conflict; then nothing has changed."""
    file_sha256 = upload.finish()
    trusted = trusted_keys(state)
    if not trusted:
        raise SignatureError("this fleet trusts no builder yet", "edgekit-fleet trust add builder.pub")
    opened = bundle.open(upload.path, trusted)
    sealed = None
    if opened.encrypted:
        sealed = _reseal(opened, keys)
    name, version = opened.info.name, opened.info.version
    if len(name) > 100 or len(version) > 90:
        raise InputError("the release's name or version is longer than 90 characters", "build it anew")
    path = state.releases / f"{opened.digest.removeprefix('sha256:')}.edgekit"
    with db.write() as connection:
        known = (
            connection.execute(select(releases).where(releases.c.digest == opened.digest)).mappings().first()
        )
        if known is not None:
            if not path.exists():  # lost from the disk: this upload has the same index, so it restores it
                upload.path.replace(path)
                values = {"file_sha256": file_sha256, "size_bytes": upload.size}
                connection.execute(update(releases).where(releases.c.digest == opened.digest).values(values))
            return get(connection, opened.digest), False
        same = select(releases.c.digest).where(releases.c.name == name, releases.c.version == version)
        if connection.scalar(same) is not None:
            raise Conflict(f"release {name}:{version} exists with other content", "give it a new version")
        row = {
            "digest": opened.digest,
            "name": name,
            "version": version,
            "file_sha256": file_sha256,
            "size_bytes": upload.size,
            "path": str(path.relative_to(state.folder)),
            "signer": opened.key_id,
            "sealed_key": sealed,
            "variants": [_describe_variant(entry) for entry in opened.variants],
            "created_at": time.time(),
        }
        connection.execute(insert(releases), row)
        detail = {"digest": opened.digest, "size_bytes": upload.size, "signer": opened.key_id}
        audit.record(connection, actor, "release.publish", f"{name}:{version}", detail)
        note(connection, "release", f"{name}:{version} was published", data={"digest": opened.digest})
        # The file takes its place before the commit: a row without its file cannot be, a file without
        # its row (a crash in between) is replaced by the next attempt.
        upload.path.replace(path)
        sync_folder(path.parent)
        return get(connection, opened.digest), True


def _reseal(opened: bundle.Bundle, keys: Keys) -> bytes:
    try:
        content_key = opened.content_key(keys.sealing)
    except DecryptError as exc:
        raise DecryptError(
            exc.message, "build it with --recipient <the fleet's recipient.pub>, see GET /v1/recipient"
        ) from None
    info = sealing.release_info(opened.info.name, opened.info.version)
    return sealing.seal(content_key, keys.recipient, info)


def _describe_variant(entry: bundle.VariantEntry) -> dict[str, Any]:
    certificate = entry.certificate
    return {
        "variant": entry.config.variant,
        "profile": entry.config.profile,
        "engine": entry.config.engine.name,
        "precision": entry.config.precision,
        "size_bytes": certificate.size_bytes,
        "accuracy": certificate.accuracy.value,
        "baseline_accuracy": certificate.baseline_accuracy.value,
        "latency_p95_ms": certificate.latency.p95_ms,
        "gates": [{"gate": g.gate, "passed": g.passed, "reason": g.reason} for g in certificate.gates],
        "gate_skipped": certificate.gate_skipped,
        "stand_in": certificate.stand_in,
    }


def list_releases(connection: Connection) -> list[dict[str, Any]]:
    """Newest first."""
    rows = connection.execute(select(releases).order_by(desc(releases.c.created_at))).mappings()
    return [_describe(dict(row)) for row in rows]


def get(connection: Connection, reference: str) -> dict[str, Any]:
    """By digest or "name:version". Raises Unknown."""
    query = select(releases)
    if DIGEST.fullmatch(reference):
        query = query.where(releases.c.digest == reference)
    else:
        name, _, version = reference.partition(":")
        query = query.where(releases.c.name == name, releases.c.version == version)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise Unknown(f"no release {reference[:120]!r}", "`edgekit fleet publish FILE` adds one")
    return _describe(dict(row))


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    sealed = row.pop("sealed_key")
    row.pop("path")
    return {**row, "release": f"{row['name']}:{row['version']}", "encrypted": sealed is not None}


def bundle_path(connection: Connection, state: State, digest: str) -> Path:
    """The file of a release. Raises Unknown."""
    path: str | None = None
    if DIGEST.fullmatch(digest):
        path = connection.scalar(select(releases.c.path).where(releases.c.digest == digest))
    if path is None or not (state.folder / path).is_file():
        raise Unknown(f"no bundle {digest[:80]!r}", "the assignment names the digest")
    return state.folder / path


Assign = Callable[[Connection, str, str, str, Terms], tuple[int, str]]
"""`make_assignment` with the keys bound: what the rollout engine is given."""


def make_assignment(
    connection: Connection, keys: Keys, device: str, digest: str, job: str, terms: Terms
) -> tuple[int, str]:
    """(counter, DSSE envelope as text) of a wire.Assignment, in the caller's transaction.

    The device's counter grows with it, so an assignment that is not committed leaves no gap that a later
    one could fill with an equal number. Raises Unknown; InputError for a device that was revoked.
    """
    release = connection.execute(select(releases).where(releases.c.digest == digest)).first()
    if release is None:
        raise Unknown(f"no release {digest}", "publish it first")
    row = connection.execute(
        update(devices)
        .where(devices.c.id == device, devices.c.revoked_at.is_(None))
        .values(counter=devices.c.counter + 1)
        .returning(devices.c.counter, devices.c.sealing_key_pem)
    ).first()
    if row is None:
        raise InputError(f"{device} is unknown or revoked: it gets no keys")
    sealed = b""
    if release.sealed_key is not None:
        info = sealing.release_info(release.name, release.version)
        content_key = sealing.unseal(release.sealed_key, keys.sealing, info)
        to = RecipientKey.from_pem(row.sealing_key_pem.encode())
        sealed = sealing.seal(content_key, to, sealing.assignment_info(TENANT, device, digest))
    assignment = Assignment(
        tenant=TENANT,
        device=device,
        counter=row.counter,
        job=job,
        release=f"{release.name}:{release.version}",
        bundle_digest=digest,
        bundle_size_bytes=release.size_bytes,
        url_path=f"/v1/bundles/{digest}",
        sealed_key=base64.b64encode(sealed).decode(),
        deadline_s=terms.deadline_s,
        watch_s=terms.watch_s,
        max_error_rate=terms.max_error_rate,
        max_latency_p95_ms=terms.max_latency_p95_ms,
    )
    envelope = dsse.sign(ASSIGNMENT_TYPE, to_json(assignment), [keys.assignment])
    return int(row.counter), envelope.decode()


def remove_leftovers(state: State) -> None:
    """Uploads that a killed process left behind."""
    for path in state.releases.glob(".upload-*"):
        with suppress(OSError):
            path.unlink()
