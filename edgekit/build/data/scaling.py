"""How stored rows become engine inputs: the scales that travel with a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgekit.build.data import images
from edgekit.build.data._base import Stored, Wanted
from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.errors import DataError
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._ports import dtype_name


def preprocessing(
    texts: Sequence[str], wanted: Wanted, evaluation: Stored, calibration: Stored, *, image_given: bool
) -> Preprocessing:
    """What `--affine` (`texts`) and `--image` say of the data. Raises DataError where they contradict it."""
    stored = {name: dtype_name(array.dtype) for name, array in evaluation.inputs.items()}
    steps = [affine(text, wanted.specs, stored) for text in texts]
    described = []
    if evaluation.pictures or calibration.pictures or image_given:
        frame = images.frame(evaluation.name, wanted.specs, wanted.image)
        if steps:
            raise DataError("--affine: pictures are scaled by --image", 'e.g. --image "raw mean=128"')
        step = images.affine(frame, wanted.specs[0], wanted.image)
        steps = [step] if step else []
        described.append(images.described(frame, wanted.image))
    if len({step.input for step in steps}) != len(steps):
        raise DataError("--affine: an input is named twice", "name each once")
    return Preprocessing(tuple(steps), tuple(described))


def affine(text: str, specs: Sequence[TensorSpec], stored: Mapping[str, str]) -> Affine:
    """`[INPUT:]SCALE,OFFSET` for one input; the stored data type is that of the data."""
    name, _, figures = text.rpartition(":")
    types = {spec.name: spec.datatype for spec in specs}
    if not name and len(specs) == 1:
        name = specs[0].name
    if name not in types:
        raise DataError(f"--affine {text!r}: name one of the inputs {list(types)}", "as INPUT:SCALE,OFFSET")
    try:
        scale, offset = (float(part) for part in figures.split(","))
    except ValueError:
        raise DataError(f"--affine {text!r}: needs two numbers", "as [INPUT:]SCALE,OFFSET") from None
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise DataError(f"--affine {text!r}: the scale must be finite and not 0, the offset finite")
    if stored[name] not in DTYPES:
        raise DataError(f"--affine {text!r}: the data stores {name!r} as {stored[name]}", "store numbers")
    if stored[name] == types[name]:
        raise DataError(
            f"--affine {text!r}: the data stores {name!r} as {stored[name]}, as the model reads it: such "
            "values pass untouched",
            "store the raw data type, or scale the rows before they are stored",
        )
    return Affine(name, stored[name], scale, offset)
