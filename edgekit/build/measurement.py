"""What the workshop hands on: a candidate's figures, files and golden samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.build.measure import Measured


@dataclass(frozen=True)
class Measurement:
    """Figures and files of one candidate, and the fp32 model's answers on the same engine."""

    measured: Measured
    golden_files: Mapping[str, bytes]
    files: Mapping[str, bytes]
    baseline_answers: tuple[int, ...]
    is_baseline: bool
