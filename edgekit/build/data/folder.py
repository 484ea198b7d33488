"""Class folders: `DIR/class_name/picture.jpg`. Rows go round the classes (the first picture of each, then the
second of each ...), so that any [START:STOP] holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.build.data import images
from edgekit.build.data._base import Place, Stored, Wanted, classes, in_order
from edgekit.build.progress import Progress
from edgekit.errors import DataError

Member = tuple[str, str]
"""A picture's class and its name in messages."""
LAYOUT = "DIR/CLASS/picture.jpg"


def read(place: Place, wanted: Wanted, progress: Progress | None = None) -> Stored:
    """Raises DataError naming the folder or file."""
    found = files(place)
    return of_classes(place, list(found), lambda member: content(found[member]), wanted, progress)


def files(place: Place) -> dict[Member, Path]:
    """Every picture in class folders and beside them. Raises DataError for a folder that cannot be read."""
    found: dict[Member, Path] = {}
    try:
        for entry in sorted(place.path.iterdir()):
            if is_picture(entry.name):
                found["", str(entry)] = entry
            elif entry.is_dir() and not entry.name.startswith("."):
                inside = (file for file in entry.iterdir() if is_picture(file.name))
                found |= {(entry.name, str(file)): file for file in inside}
    except OSError as exc:
        raise DataError(f"cannot read {exc.filename or place.path}: {exc.strerror}", "check it") from None
    return found


def is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(images.SUFFIXES)


def content(file: Path) -> bytes:
    """The bytes of one picture. Raises DataError for a pipe, a device or a giant."""
    try:
        if not file.is_file():
            raise DataError(f"{file}: no such file" if not file.exists() else f"{file}: not a file")
        size = file.stat().st_size
        if size > images.MAX_FILE_BYTES:
            raise DataError(f"{file}: {size >> 20} MiB, too large for a picture")
        return file.read_bytes()
    except OSError as exc:
        raise DataError(f"cannot read {file}: {exc.strerror or exc}", "check its permissions") from None


def of_classes(
    place: Place,
    members: Sequence[Member],
    read_one: Callable[[Member], bytes],
    wanted: Wanted,
    progress: Progress | None = None,
    positions: Mapping[Member, int] | None = None,
) -> Stored:
    """Rows from pictures that carry their class. Pictures without one (class "") count only where there are
    no others, and no truth is asked for."""
    labelled = [member for member in members if member[0]]
    if not labelled and (not members or wanted.truth in ("class", "value")):
        raise DataError(
            f"{place.text}: no pictures in class folders",
            f"expected {LAYOUT}, with {', '.join(images.SUFFIXES[:3])} and the like",
        )
    found = {label for label, _ in labelled}
    names = (wanted.label_names or in_order(found)) if labelled else ()
    ordered = round_robin(labelled or members, names)
    where = positions or {}
    pictures = images.Pictures(
        [name for _, name in ordered], lambda i: read_one(ordered[i]), lambda i: where.get(ordered[i], i)
    )
    pixels = images.pixels(place, pictures, wanted, progress)
    truth = None
    if labelled and wanted.truth != "none":
        truth = classes(place.text, [label for label, _ in ordered], names)[place.rows]
    return Stored(place.text, {wanted.specs[0].name: pixels}, truth, tuple(names), pictures=True)


def round_robin(members: Sequence[Member], names: Sequence[str]) -> list[Member]:
    """The first of each class, the second of each, ...; classes as in `names`, pictures by name."""
    turn: dict[str, int] = {}
    keyed = []
    order = {name: i for i, name in enumerate(names)}
    for label, name in sorted(members):
        keyed.append((turn.setdefault(label, 0), order.get(label, len(order)), label, name))
        turn[label] += 1
    return [(label, name) for _, _, label, name in sorted(keyed)]
