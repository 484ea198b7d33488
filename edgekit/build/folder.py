"""A variant as plain files in a folder: the engine's files, `variant.json`, perhaps `certificate.json`.

For people who want one step: no bundle, no signature, no encryption.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping
from pathlib import Path

from edgekit import codec
from edgekit.backends import Recipe, SourceModel
from edgekit.build import forecast
from edgekit.bundle.model import Certificate, EngineRange, Preprocessing, Variant, VariantConfig
from edgekit.errors import FormatError, SystemFault
from edgekit.files import storage_fault, write_bytes

CONFIG, CERTIFICATE = "variant.json", "certificate.json"
OWN = {CONFIG, CERTIFICATE}


def config(model: SourceModel, recipe: Recipe, files: Mapping[str, bytes], profile: str) -> VariantConfig:
    """The configuration of a variant that was built and not certified: no CPU is asked for."""
    return VariantConfig(
        variant=f"{profile}.{recipe.name}",
        profile=profile,
        engine=EngineRange(recipe.engine),
        precision=recipe.precision,
        options=dict(recipe.runtime_options),
        files=tuple(sorted(files)),
        inputs=model.inputs,
        outputs=model.outputs,
        labels=(),
        preprocessing=Preprocessing(),
        architecture="any",
        isa=(),
        memory_forecast_mib=forecast.memory_mib(recipe.engine, files),
    )


def write(folder: Path, settings: VariantConfig, files: Mapping[str, bytes]) -> None:
    """Write the engine's files and `variant.json`; what else lies in the folder stays. Packed files are
    unpacked: other programs read them too.

    Raises SystemFault when it cannot be written.
    """
    plain = dict(_unpacked(name, content) for name, content in files.items())
    settings = dataclasses.replace(settings, files=tuple(sorted(plain)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in plain.items():
            if name in OWN or not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise FormatError(f"a file of the variant is called {name!r}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, content)
    except OSError as exc:
        raise storage_fault(folder, exc) from None
    write_bytes(folder / CONFIG, codec.to_json(settings) + b"\n")


def _unpacked(name: str, content: bytes) -> tuple[str, bytes]:
    return (name.removesuffix(".gz"), gzip.decompress(content)) if name.endswith(".gz") else (name, content)


def write_variant(folder: Path, variant: Variant) -> None:
    """A certified variant: `certificate.json` too."""
    write(folder, variant.config, variant.files)
    write_bytes(folder / CERTIFICATE, codec.to_json(variant.certificate) + b"\n")


def read(folder: Path) -> tuple[VariantConfig, dict[str, bytes], Certificate | None]:
    """What `write` or `write_variant` wrote. Raises FormatError when a file is absent or does not fit."""
    try:
        plain = (folder / CONFIG).read_bytes()
    except OSError:
        hint = "name a bundle, a model file, or a folder that `edgekit optimize` or `convert` wrote"
        raise FormatError(f"{folder} holds no {CONFIG}", hint) from None
    settings = codec.from_json(VariantConfig, plain, what=str(folder / CONFIG), error=FormatError)
    files = {}
    for name in settings.files:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise FormatError(f"{folder / CONFIG}: {name!r} leads out of the folder")
        try:
            files[name] = path.read_bytes()
        except OSError as exc:
            raise SystemFault(f"cannot read {path}: {exc.strerror or exc}") from None
    path = folder / CERTIFICATE
    certificate = None
    if path.exists():
        certificate = codec.from_json(Certificate, path.read_bytes(), what=str(path), error=FormatError)
    return settings, files, certificate
