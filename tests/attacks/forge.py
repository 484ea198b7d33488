"""Take a bundle apart, change it, and put it together again as a careful attacker would."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

from edgekit import codec
from edgekit.bundle import archive, oci, reader
from edgekit.crypto import dsse
from edgekit.crypto.keys import SigningKey

Change = Callable[[Any], Any]
"""Changes a parsed document in place, or returns another."""


class Forge:
    """Blobs of a bundle by hex digest. `edit` keeps every digest and size that points at the blob right."""

    def __init__(self, data: bytes | memoryview) -> None:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            self.members = {m.name: _content(tar, m) for m in tar}
        self.blobs = {
            name.removeprefix(archive.BLOB_FOLDER): content
            for name, content in self.members.items()
            if name.startswith(archive.BLOB_FOLDER)
        }
        self.index = _hex(self._document(self.members["index.json"])["manifests"][0])

    def json(self, digest: str) -> Any:
        return self._document(self.blobs[digest])

    def find(self, kind: str, number: int = 0) -> str:
        """Hex digest of a document by its role."""
        listed = self.json(self.index)["manifests"]
        of_kind = {
            "variant": oci.VARIANT,
            "release manifest": oci.RELEASE,
            "sbom manifest": oci.SBOM,
            "signature manifest": oci.SIGNATURE,
        }
        if kind in of_kind:
            return _hex([m for m in listed if m["annotations"][oci.KIND] == of_kind[kind]][number])
        if kind == "index":
            return self.index
        if kind in ("release", "sbom", "envelope"):
            parent = {"envelope": "signature manifest"}.get(kind, f"{kind} manifest")
            return _hex(self.json(self.find(parent))["layers"][0])
        manifest = self.json(self.find("variant", number))
        parts = {
            "config": manifest["config"],
            "certificate": manifest["layers"][0],
            "golden": manifest["layers"][1],
            "file": manifest["layers"][2],
        }
        return _hex(parts[kind])

    def edit(self, digest: str, change: Change) -> Forge:
        """Change a JSON blob; everything that refers to it follows, the signature does not."""
        document = self.json(digest)
        result = change(document)
        return self.replace(digest, _dump(document if result is None else result))

    def replace(self, digest: str, content: bytes) -> Forge:
        """Other bytes for a blob, under their own digest."""
        forged = copy.copy(self)
        new = hashlib.sha256(content).hexdigest()
        if new == digest:
            return self
        forged.blobs = {k: v for k, v in self.blobs.items() if k != digest}
        forged.blobs[new] = content
        if digest == self.index:
            forged.index = new
        while referring := [k for k, v in forged.blobs.items() if digest.encode() in v]:
            document = json.loads(forged.blobs[referring[0]].replace(digest.encode(), new.encode()))
            _sizes(document, new, len(content))
            forged = forged.replace(referring[0], _dump(document))
        return forged

    def statement(self, change: Change, *signers: SigningKey) -> Forge:
        """Change the signed statement; sign it anew, or leave the old signature when there is no signer."""
        envelope = self.json(self.find("envelope"))
        statement = self._document(base64.b64decode(envelope["payload"]))
        result = change(statement)
        payload = _dump(statement if result is None else result)
        if signers:
            return self.replace(self.find("envelope"), dsse.sign(oci.IN_TOTO, payload, signers))
        envelope["payload"] = base64.b64encode(payload).decode()
        return self.replace(self.find("envelope"), _dump(envelope))

    def resigned(self, *signers: SigningKey) -> Forge:
        """A statement that again lists what is there, in the form a builder would sign."""

        def change(statement: Any) -> None:
            listed = [
                _hex(m)
                for m in self.json(self.index)["manifests"]
                if m["annotations"][oci.KIND] != oci.SIGNATURE
            ]
            for subject, digest in zip(statement["subject"], listed, strict=False):
                subject["digest"]["sha256"] = digest
            own = {self.index, self.find("envelope"), self.find("signature manifest")}
            statement["predicate"]["blobs"] = [
                {"digest": f"sha256:{k}", "size": len(v)}
                for k, v in sorted(self.blobs.items())
                if k not in own
            ]

        return self.statement(change, *signers)

    def data(self) -> bytes:
        """The file, in canonical form."""
        file = io.BytesIO()
        archive.write(file, self.files())
        return file.getvalue()

    def files(self) -> dict[str, bytes]:
        """Member name to content."""
        outer = reader.outer_index(f"sha256:{self.index}", len(self.blobs[self.index]))
        blobs = {archive.BLOB_FOLDER + name: content for name, content in self.blobs.items()}
        return {**blobs, "index.json": outer, "oci-layout": archive.LAYOUT}

    @staticmethod
    def _document(data: bytes) -> Any:
        return json.loads(data)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _dump(document: Any) -> bytes:
    """Canonical where it can be: an attacker also writes NaN."""
    try:
        if isinstance(document, dict) and "manifests" in document:
            return json.dumps(_index_order(document), separators=(",", ":"), allow_nan=False).encode()
        return codec.to_json(document)
    except ValueError:
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _index_order(index: dict[str, Any]) -> dict[str, Any]:
    """Fields of an index in the order in which a builder writes them."""
    first = ("schemaVersion", "mediaType", "manifests", "digest", "size", "annotations", "platform")

    def rank(item: tuple[str, Any]) -> tuple[int, str]:
        return (first.index(item[0]) if item[0] in first else len(first), item[0])

    manifests = index["manifests"]
    if isinstance(manifests, list) and all(isinstance(m, dict) for m in manifests):
        index = {**index, "manifests": [dict(sorted(m.items(), key=rank)) for m in manifests]}
    return dict(sorted(index.items(), key=rank))


def _hex(descriptor: Any) -> str:
    return str(descriptor["digest"]).removeprefix("sha256:")


def _sizes(value: Any, digest: str, size: int) -> None:
    """Set the size of every descriptor that names `digest`."""
    if isinstance(value, dict):
        if value.get("digest") == f"sha256:{digest}":
            value["size"] = size
        for item in value.values():
            _sizes(item, digest, size)
    elif isinstance(value, list):
        for item in value:
            _sizes(item, digest, size)
