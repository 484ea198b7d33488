"""Class folders in a tar (plain or compressed) or ZIP archive, read in place: nothing is ever unpacked, so a
member's name is a label and never a path. A picture's class is the folder that it lies in."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import PurePosixPath

from edgekit.build.data import images
from edgekit.build.data._base import Place, Stored, Wanted
from edgekit.build.data.folder import Member, is_picture, of_classes
from edgekit.build.progress import Progress
from edgekit.errors import DataError


def read_tar(place: Place, wanted: Wanted, progress: Progress | None = None) -> Stored:
    """Raises DataError naming archive and member."""
    try:
        with tarfile.open(place.path) as archive:
            found: dict[Member, tarfile.TarInfo] = {}
            for info in archive:
                if info.isreg() and (member := _member(place, info.name)):
                    found[member] = info

            def read_one(member: Member) -> bytes:
                _check_size(member[1], found[member].size)
                file = archive.extractfile(found[member])
                return file.read() if file else b""

            positions = {member: info.offset_data for member, info in found.items()}
            return of_classes(place, list(found), read_one, wanted, progress, positions)
    except DataError:
        raise
    except Exception as exc:  # tarfile and the decompressors raise a dozen types
        raise _damaged(place, exc) from None


def read_zip(place: Place, wanted: Wanted, progress: Progress | None = None) -> Stored:
    """Raises DataError naming archive and member."""
    try:
        with zipfile.ZipFile(place.path) as archive:
            found: dict[Member, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                if not info.is_dir() and (member := _member(place, info.filename)):
                    found[member] = info

            def read_one(member: Member) -> bytes:
                _check_size(member[1], found[member].file_size)
                with archive.open(found[member]) as file:
                    return file.read(images.MAX_FILE_BYTES)

            positions = {member: info.header_offset for member, info in found.items()}
            return of_classes(place, list(found), read_one, wanted, progress, positions)
    except DataError:
        raise
    except Exception as exc:  # zipfile and zlib raise a dozen types
        raise _damaged(place, exc) from None


def _member(place: Place, name: str) -> Member | None:
    path = PurePosixPath(name)
    if not is_picture(path.name) or path.parent.name.startswith(".") or "__MACOSX" in path.parts:
        return None
    return path.parent.name, f"{place.path}: {name}"


def _check_size(name: str, size: int) -> None:
    if size > images.MAX_FILE_BYTES:
        raise DataError(f"{name}: {size >> 20} MiB, too large for a picture")


def _damaged(place: Place, exc: Exception) -> DataError:
    return DataError(f"{place.path}: a damaged archive: {exc or type(exc).__name__}", "make it again")
