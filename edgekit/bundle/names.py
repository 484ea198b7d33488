"""Names that may appear in a bundle."""

from __future__ import annotations

import re
import unicodedata

from edgekit.bundle.model import GoldenSpec
from edgekit.errors import FormatError

MAX_NAME = 255
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@,-]{0,127}")


def check_variant(name: str) -> None:
    """Raises FormatError."""
    if not _VARIANT.fullmatch(name):
        raise FormatError(f"bad variant name {name[:80]!r}", "use letters, digits, dots and dashes")


def check_files(names: tuple[str, ...], declared: tuple[str, ...]) -> None:
    """Model file names: relative, no tricks, unique also where case is ignored. Raises FormatError."""
    for name in names:
        parts = name.split("/")
        if len(name) > MAX_NAME or not all(_COMPONENT.fullmatch(part) for part in parts):
            raise FormatError(f"bad file name {name[:80]!r}", "use a relative path of plain names")
    _check_unique(tuple(name.lower() for name in names))
    if sorted(names) != sorted(declared):
        raise FormatError("the files of a variant are not those that its configuration declares")


def check_golden(names: tuple[str, ...], spec: GoldenSpec) -> None:
    """Golden file names are keys made of tensor names, never paths. Raises FormatError."""
    _check_unique(names)
    inputs = {f"inputs/{tensor.name}" for tensor in spec.inputs}
    outputs = {f"outputs/{tensor.name}" for tensor in spec.outputs}
    required = inputs | outputs
    if not required <= set(names) <= required | {"reference"}:
        raise FormatError("the golden files of a variant are not those that its golden document declares")
    for name in names:
        if len(name) > MAX_NAME or any(unicodedata.category(c).startswith("C") for c in name):
            raise FormatError(f"bad golden file name {name[:80]!r}")


def check_text(value: str, what: str, most: int = 200) -> None:
    """Free text such as a version: printable, one line, not empty. Raises FormatError."""
    if not value or len(value) > most or any(unicodedata.category(c).startswith("C") for c in value):
        raise FormatError(f"bad {what} {value[:80]!r}", f"use 1 to {most} printable characters")


def _check_unique(names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise FormatError("a file name of a variant is there twice")
