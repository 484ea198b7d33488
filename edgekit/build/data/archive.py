"""Class folders in a tar (plain or compressed) or ZIP archive, read in place: nothing is ever unpacked, so a
member's name is a label and never a path. A picture's class is the folder that it lies in."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgekit.build.data import images
from edgekit.build.data._base import Place, Stored, Wanted
from edgekit.build.data.folder import Member, is_picture, of_classes
from edgekit.build.progress import Progress
from edgekit.errors import DataError


@dataclass(frozen=True)
class Archive:
    """An open archive's pictures."""

    positions: Mapping[Member, int]
    """Where each lies: reading in this order goes through a compressed archive once."""
    read: Callable[[Member], bytes]


def read(place: Place, wanted: Wanted, progress: Progress | None = None, *, is_zip: bool) -> Stored:
    """Raises DataError naming archive and member."""
    with _open(place, is_zip=is_zip) as archive:
        members = list(archive.positions)
        return of_classes(place, members, archive.read, wanted, progress, archive.positions)


def members(place: Place, *, is_zip: bool) -> list[Member]:
    """Every picture. Raises DataError for a damaged archive."""
    with _open(place, is_zip=is_zip) as archive:
        return list(archive.positions)


@contextmanager
def _open(place: Place, *, is_zip: bool) -> Iterator[Archive]:
    try:
        if is_zip:
            with zipfile.ZipFile(place.path) as file:
                yield _of_zip(place, file)
        else:
            with tarfile.open(place.path) as file:
                yield _of_tar(place, file)
    except DataError:
        raise
    except Exception as exc:  # tarfile, zipfile and the decompressors raise a dozen types
        said = str(exc) or type(exc).__name__
        raise DataError(f"{place.path}: a damaged archive: {said}", "make it again") from None


def _of_tar(place: Place, file: tarfile.TarFile) -> Archive:
    found: dict[Member, tarfile.TarInfo] = {}
    for info in file:
        if info.isreg() and (member := _member(place, info.name)):
            found[member] = info

    def read_one(member: Member) -> bytes:
        _check_size(member[1], found[member].size)
        content = file.extractfile(found[member])
        return content.read() if content else b""

    return Archive({member: info.offset_data for member, info in found.items()}, read_one)


def _of_zip(place: Place, file: zipfile.ZipFile) -> Archive:
    found: dict[Member, zipfile.ZipInfo] = {}
    for info in file.infolist():
        if not info.is_dir() and (member := _member(place, info.filename)):
            found[member] = info

    def read_one(member: Member) -> bytes:
        _check_size(member[1], found[member].file_size)
        with file.open(found[member]) as content:
            return content.read(images.MAX_FILE_BYTES)

    return Archive({member: info.header_offset for member, info in found.items()}, read_one)


def _member(place: Place, name: str) -> Member | None:
    path = PurePosixPath(name)
    if not is_picture(path.name) or path.parent.name.startswith(".") or "__MACOSX" in path.parts:
        return None
    return path.parent.name, f"{place.path}: {name}"


def _check_size(name: str, size: int) -> None:
    if size > images.MAX_FILE_BYTES:
        raise DataError(f"{name}: {size >> 20} MiB, too large for a picture")
