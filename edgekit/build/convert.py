"""One step alone: a model of any known format as ONNX, or as the fp32 files of one engine. No gates."""

from __future__ import annotations

from pathlib import Path

from edgekit import backends
from edgekit.backends import Recipe, SourceModel
from edgekit.build import sources, worker
from edgekit.build.cache import Cache
from edgekit.build.progress import Progress, Silent
from edgekit.errors import InputError
from edgekit.profile import CalibrationPolicy, Precision, Profile, Target

PRECISION: Precision = "fp32"


def to_onnx(
    path: Path, options: sources.SourceOptions, cache: Cache, progress: Progress | None = None
) -> SourceModel:
    """Read, convert, check, clean. Raises ModelError, EngineMissing."""
    return sources.load(path, cache, options, progress)


def to_engine(
    model: SourceModel, engine: str, profile: Profile | None = None, progress: Progress | None = None
) -> tuple[Recipe, dict[str, bytes]]:
    """The engine's own fp32 files. The profile's engine options are taken where it has the engine.

    Raises EngineMissing, EngineError in the engine's words, InputError when it has no fp32.
    """
    found = [target for target in (profile.target if profile else ()) if target.runtime == engine]
    target = found[0] if found else Target(engine, (PRECISION,))
    policy = profile.calibration if profile else CalibrationPolicy()
    backend = backends.get(engine)
    backend.tools()
    recipe = next(iter(backend.recipes(PRECISION, target, policy)), None)
    if recipe is None:
        raise InputError(f"{engine} has no {PRECISION}", "see `edgekit optimize --precision`")
    with (progress or Silent()).step(f"build {recipe.name}"):
        _, files = worker.run(worker.Job("build", recipe, model=model))
    return recipe, files
