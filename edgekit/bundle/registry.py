"""A bundle that comes back from a registry: the same blobs, but in a file of another tool's making.

`skopeo copy --all docker://... oci-archive:FILE` (or `oci:FOLDER`) keeps every blob and rewrites the
layout around them. The bundle's digest names its index blob, so it survives; `from_oci` verifies the
blobs and writes the one file that these blobs have.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from edgekit import codec
from edgekit.bundle import archive, oci, reader
from edgekit.bundle.contents import verify
from edgekit.bundle.source import MAX_BUNDLE_BYTES, FileSource, Source, pieces, source_of
from edgekit.crypto.keys import VerifyKey
from edgekit.errors import FormatError, InputError
from edgekit.files import atomic_write

_BLOB = re.compile(r"(?:\./)?blobs/sha256/([0-9a-f]{64})")
_PLAIN = {"": "", "blobs": "", "blobs/sha256": "", "oci-layout": ""}
Places = dict[str, tuple[Source, archive.Member]]


def from_oci(source: Path, destination: Path, trusted: Sequence[VerifyKey]) -> reader.Bundle:
    """Verify the bundle in an OCI archive or layout folder and write it to `destination` as a bundle file.

    The file is byte for byte the one that was pushed. Raises BundleError subclasses; `destination` is
    then untouched.
    """
    index, places = _folder(source) if source.is_dir() else _archive(source)
    digest = _bundle_digest(index)
    blobs = reader.StoredBlobs(places)
    blobs.check_all()
    verify(blobs, digest, trusted)
    outer = reader.outer_index(digest, blobs.sizes[digest.removeprefix("sha256:")])
    members = {
        archive.BLOB_FOLDER + name: (member.size, pieces(where, member.offset, member.size))
        for name, (where, member) in places.items()
    }
    with atomic_write(destination) as file:
        archive.copy(
            file,
            {
                **members,
                archive.INDEX_NAME: (len(outer), [outer]),
                archive.LAYOUT_NAME: (len(archive.LAYOUT), [archive.LAYOUT]),
            },
        )
    return reader.open(destination, trusted)


def _archive(path: Path) -> tuple[bytes, Places]:
    """(index.json, blobs) of a tar of any dialect without links, sparse or special files."""
    source = source_of(path)
    places: Places = {}
    index = b""
    try:
        with tarfile.open(path, "r:") as tar:
            for number, member in enumerate(tar):
                name = member.name.removeprefix("./")
                match = _BLOB.fullmatch(name)
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if number > archive.MAX_MEMBERS or not (regular or member.isdir()):
                    raise FormatError(f"{path.name}: too many members, or a link: {name[:80]!r}")
                place = archive.Member(member.offset_data, member.size)
                if match and regular and match[1] not in places:
                    places[match[1]] = (source, place)
                elif name == archive.INDEX_NAME and regular and not index:
                    index = _small(source, place)
                elif name not in _PLAIN:
                    raise FormatError(f"{path.name}: unexpected or repeated member {name[:80]!r}")
    except (tarfile.TarError, OSError, ValueError) as exc:
        raise FormatError(
            f"{path.name}: not an OCI archive: {exc}", "give an oci-archive of skopeo"
        ) from None
    return index, places


def _folder(folder: Path) -> tuple[bytes, Places]:
    """(index.json, blobs) of an OCI layout folder."""
    places: Places = {}
    for number, path in enumerate(sorted(folder.glob("blobs/sha256/*"))):
        if (
            number > archive.MAX_MEMBERS
            or path.is_symlink()
            or not _BLOB.fullmatch(f"blobs/sha256/{path.name}")
        ):
            raise FormatError(f"{folder.name}: unexpected file {path.name[:80]!r}")
        source = FileSource(path)
        places[path.name] = (source, archive.Member(0, source.size))
    if sum(member.size for _, member in places.values()) > MAX_BUNDLE_BYTES:
        raise FormatError(f"{folder.name}: more than the {MAX_BUNDLE_BYTES} bytes allowed")
    try:
        source = FileSource(folder / archive.INDEX_NAME)
    except InputError:
        raise FormatError(f"{folder.name}: no OCI layout, it has no index.json") from None
    return _small(source, archive.Member(0, source.size)), places


def _small(source: Source, member: archive.Member) -> bytes:
    if member.size > reader.MAX_OUTER_INDEX:
        raise FormatError(f"index.json: {member.size} bytes, more than the {reader.MAX_OUTER_INDEX} allowed")
    return source.read(member.offset, member.size)


def _bundle_digest(index: bytes) -> str:
    """The digest of the only image index that index.json lists; other fields are another tool's business."""
    plain = codec.parse_json(index, what="index.json", error=FormatError)
    listed = plain.get("manifests") if isinstance(plain, dict) else None
    found = [
        str(item.get("digest", ""))
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and item.get("mediaType") == oci.INDEX
    ]
    if len(found) != 1:
        raise FormatError(
            f"index.json lists {len(found)} bundles, expected one",
            "copy one tag, with `skopeo copy --all`, so that every variant comes along",
        )
    oci.hex_of(found[0], "index.json")
    return found[0]
