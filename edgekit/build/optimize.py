"""One step alone: one precision for one device, measured and gated."""

from __future__ import annotations

import dataclasses

from edgekit.build.cache import Cache
from edgekit.build.pipeline import build
from edgekit.build.progress import Progress
from edgekit.build.request import Request
from edgekit.bundle.model import Variant
from edgekit.profile import Precision, Profile, Target


def offering(profile: Profile, precision: Precision, engine: str = "") -> Profile:
    """The profile with `precision` on each of its engines or on `engine` alone, listed there or not."""
    targets = [t for t in profile.target if engine in ("", t.runtime)] or [Target(engine, (precision,))]
    narrowed = tuple(dataclasses.replace(target, precisions=(precision,)) for target in targets)
    return dataclasses.replace(profile, target=narrowed)


def optimize(request: Request, cache: Cache, progress: Progress | None = None) -> Variant:
    """The variant of a request for one profile. Raises InputError, or GateError when none passes."""
    return build(request, cache, progress).variants[0]
