"""What a source format is, and what it turns into."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.errors import ModelError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SourceOptions:
    """What the file itself cannot say."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Input name to its full shape, e.g. {"x": (1, 3, 224, 224)}, where the model leaves dimensions open."""
    trust: bool = False
    """Convert formats that run code while they are loaded; isolated all the same."""


@dataclass(frozen=True)
class Look:
    """A file or folder, and as much of it as tells its format."""

    path: Path
    size: int
    """Bytes; of a folder, all its files together."""
    head: bytes
    """The first 4 KiB; empty for a folder."""

    @cached_property
    def members(self) -> frozenset[str]:
        """Of a ZIP archive: names without the archive's own top folder. Raises ModelError when it is cut."""
        if not self.head.startswith(b"PK\x03\x04"):
            return frozenset()
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise ModelError(f"{self.path}: a truncated or damaged ZIP archive", "copy it again") from None
        tops = {name.split("/", 1)[0] for name in names}
        top = f"{tops.pop()}/" if len(tops) == 1 else ""
        return frozenset(name.removeprefix(top) for name in names)

    def files(self) -> Iterator[Path]:
        """The file, or the folder's files in a fixed order."""
        if self.path.is_dir():
            yield from sorted(path for path in self.path.rglob("*") if not path.is_dir())
        else:
            yield self.path


def no_risk(look: Look) -> str:
    """For formats that are data: loading them runs nothing."""
    del look
    return ""


@dataclass(frozen=True)
class Format:
    """One source format: `edgekit/build/sources/<name>.py` ends with `FORMAT = Format(...)`."""

    name: str
    title: str
    """As people call it."""
    env: str
    """The tool environment that converts it."""
    script: str
    packages: tuple[str, ...]
    """Those of the environment whose versions decide the result."""
    recognise: Callable[[Look], bool]
    """By content only. Raises ModelError for a damaged container."""
    risk: Callable[[Look], str] = no_risk
    """Why loading it would run code or reach other files, in half a sentence; empty when it does not."""


@dataclass(frozen=True)
class Probe:
    """One question that the source framework answered."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Converted:
    """ONNX as a converter gave it, not yet checked."""

    onnx: bytes
    probes: tuple[Probe, ...]
    batch: bool
    """Whether the source takes several rows at once."""
    slack: Mapping[str, float] = field(default_factory=dict)
    """Output name to how far the source framework's own kernels are apart on the probes."""


def refuse(look: Look, what: str, hint: str) -> ModelError:
    return ModelError(f"{look.path} is {what}", hint)
