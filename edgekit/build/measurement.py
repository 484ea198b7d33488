"""What the workshop hands on: a candidate's figures, files, answers and golden samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgekit.build.measure import Measured


@dataclass(frozen=True)
class Measurement:
    """Figures and files of one candidate, and what the fp32 model says on the same engine."""

    measured: Measured
    golden_files: Mapping[str, bytes]
    files: Mapping[str, bytes]
    outputs: Mapping[str, NDArray[Any]]
    """(rows, ...) by name, decoded where the request names a decoder."""
    baseline_outputs: Mapping[str, NDArray[Any]]
    is_baseline: bool
    stand_in: str = ""
    """The engine that answered in place of the candidate's own; empty: its own."""
    emulated: str = ""
    """The CPU that was emulated for `outputs` and `baseline_outputs`; empty: this host's own."""
    emulated_rows: int = 0
    """How many evaluation rows went through it; the others are this host's, where both agree."""
    rows: tuple[int, ...] = ()
    """Which evaluation rows `outputs` answer; empty: all of them."""
    host_gap: float = 0.0
    """Largest difference between the emulated CPU's answers and this host's, on the same rows."""
