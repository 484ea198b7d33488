"""From pictures to pixels, with the code that a device runs (`runtimes._pictures`). Scaling is left to the
bundle's `Affine`, so that rows stay small (UINT8) here and clients may send pixels there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit import host
from edgekit.build.data._base import Array, ImageSpec, Place, Wanted
from edgekit.build.progress import Progress, Silent
from edgekit.bundle.model import Affine, Image, TensorSpec
from edgekit.errors import DataError, InputError
from edgekit.runtimes import _pictures

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What Pillow may try: plain pixel formats, no EPS, which runs Ghostscript."""
MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_WORDS = {"rgb": "RGB", "bgr": "BGR", "gray": "L", "grey": "L"}


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures in the order of the rows."""

    names: Sequence[str]
    """For messages."""
    read: Callable[[int], bytes]
    position: Callable[[int], int] = int
    """Where picture i lies in its archive: read in this order."""


@dataclass(frozen=True)
class Frame:
    """The input that pictures are made for."""

    name: str
    height: int
    width: int
    channels: int
    layout: str
    color: str


def parse(text: str) -> ImageSpec:
    """`rgb|bgr|gray  stretch|crop[=SHARE]|letterbox  nchw|nhwc  raw  imagenet  mean=A[,B,C]  std=A[,B,C]`."""
    spec = ImageSpec()
    for word in text.split():
        key, _, value = word.lower().partition("=")
        if key in _WORDS and not value:
            spec = replace(spec, color=_WORDS[key])
        elif key in ("stretch", "letterbox") and not value:
            spec = replace(spec, resize=key)
        elif key == "crop":
            spec = replace(spec, resize=key, keep=_numbers(word, value)[0] if value else 1.0)
        elif key in ("nchw", "nhwc") and not value:
            spec = replace(spec, layout=key.upper())
        elif key == "raw" and not value:
            spec = replace(spec, raw=True)
        elif key == "imagenet" and not value:
            spec = replace(spec, mean=IMAGENET[0], std=IMAGENET[1])
        elif key == "mean":
            spec = replace(spec, mean=_numbers(word, value))
        elif key == "std":
            spec = replace(spec, std=_numbers(word, value))
        else:
            known = "rgb bgr gray, stretch crop[=SHARE] letterbox, nchw nhwc, raw, imagenet, mean=.., std=.."
            raise DataError(f"--image: {word!r} is not known", f"words with spaces: {known}")
    if not 0 < spec.keep <= 1:
        raise DataError(f"--image: crop={spec.keep:g} is no share", "above 0, at most 1")
    if 0 in spec.std:
        raise DataError("--image: std must not be 0")
    return spec


def _numbers(word: str, value: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in value.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3) or not all(map(math.isfinite, found)):
        raise DataError(f"--image: {word!r} needs one number, or three with commas", "e.g. mean=0.5")
    return found


def frame(name: str, specs: Sequence[TensorSpec], spec: ImageSpec) -> Frame:
    """Raises DataError when the model does not read one picture."""
    if len(specs) != 1:
        raise DataError(
            f"{name}: pictures feed one input, the model has {', '.join(s.name for s in specs)}",
            "store the rows as .npz, one array per input",
        )
    (port,) = specs
    shape = port.shape
    layout = spec.layout or _layout(shape)
    channels = shape[{"NCHW": 1, "NHWC": 3}[layout]] if layout and len(shape) == 4 else 0
    if channels not in (1, 3) or min(shape[1:]) < 1:
        raise DataError(
            f"{name}: pictures do not fit input {port.name!r} of shape {list(shape)}",
            "it should be (batch, channels, height, width) or with the channels last, and have 1 or 3",
        )
    color = spec.color or ("RGB" if channels == 3 else "L")
    if (color == "L") != (channels == 1):
        raise DataError(f"--image: {color} pictures for {channels} channels of input {port.name!r}")
    height, width = shape[2:4] if layout == "NCHW" else shape[1:3]
    return Frame(port.name, height, width, channels, layout, color)


def _layout(shape: Sequence[int]) -> str:
    if len(shape) != 4:
        return ""
    return "NCHW" if shape[1] in (1, 3) else "NHWC" if shape[3] in (1, 3) else ""


def words(image: Image) -> str:
    """What `parse` reads as `image`; scaling, which is in `Affine`, left out."""
    color = next(word for word, name in _WORDS.items() if name == image.color)
    resize = f"crop={image.keep!r}" if image.resize == "crop" else image.resize
    return f"{color} {resize} {image.layout.lower()}"


def described(made: Frame, spec: ImageSpec) -> Image:
    """What travels with the bundle."""
    return Image(made.name, made.layout, made.color, spec.resize, spec.keep)


def affine(made: Frame, port: TensorSpec, spec: ImageSpec) -> Affine | None:
    """(pixel / 255 - mean) / std as (pixel - offset) * scale per channel, in the order of the channels sent.

    None where the model reads UINT8 pixels as they are. Raises DataError where they would have no meaning.
    """
    plain = not (spec.raw or spec.mean or spec.std)
    if port.datatype == "UINT8" and plain:
        return None
    if port.datatype not in ("FP32", "FP16", "FP64") and plain:
        raise DataError(
            f"input {port.name!r} is {port.datatype}: how do pixels from 0 to 255 become it?",
            'say so with --image, e.g. "raw mean=128"',
        )
    unit = 1.0 if spec.raw else 1 / 255
    means, stds = (_per_channel(made, given, rest) for given, rest in ((spec.mean, 0.0), (spec.std, 1.0)))
    scales = tuple(unit / std for std in stds)
    offsets = tuple(mean / unit for mean in means)
    if len(set(scales)) == len(set(offsets)) == 1:
        return Affine(made.name, "UINT8", scales[0], offsets[0])
    axis = 1 if made.layout == "NCHW" else 3
    return Affine(made.name, "UINT8", scales[0], offsets[0], axis, scales, offsets)


def _per_channel(made: Frame, given: Sequence[float], rest: float) -> tuple[float, ...]:
    """One figure per channel, in the order in which the model reads the channels."""
    figures = tuple(given) or (rest,)
    if len(figures) not in (1, made.channels):
        raise DataError(f"--image: {len(figures)} figures for {made.channels} channel of {made.name!r}")
    return figures * made.channels if len(figures) == 1 else figures


def pixels(place: Place, pictures: Pictures, wanted: Wanted, progress: Progress | None = None) -> Array:
    """The selected pictures as UINT8 (rows, channels, height, width), or with the channels last.

    Raises DataError naming the first file that is no sound picture.
    """
    made = frame(place.text, wanted.specs, wanted.image)
    chosen = place.of(len(pictures.names))
    _check_memory(place.text, len(chosen), made)
    rows = np.empty((len(chosen), made.height, made.width, made.channels), np.uint8)
    places = {number: row for row, number in enumerate(chosen)}
    with (progress or Silent()).step(f"read {len(chosen)} pictures of {place.text}"):
        for number in sorted(chosen, key=pictures.position):
            name = pictures.names[number]
            rows[places[number]] = decode(name, pictures.read(number), made, wanted.image)
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2)) if made.layout == "NCHW" else rows


def _check_memory(text: str, rows: int, made: Frame) -> None:
    """As UINT8, then as FP32 with a copy."""
    need_mib = rows * made.height * made.width * made.channels * 9 / 2**20
    have_mib = host.read().ram_mib
    if need_mib > have_mib:
        raise DataError(
            f"{text}: {rows} pictures need {need_mib:.0f} MiB, this machine has {have_mib:.0f}",
            "take fewer rows, e.g. [0:500]",
        )


def decode(name: str, content: bytes, made: Frame, spec: ImageSpec) -> NDArray[np.uint8]:
    """(height, width, channels). Raises DataError naming the file."""
    frame = _pictures.Frame(made.height, made.width, made.color, made.layout, spec.resize, spec.keep)
    try:
        return _pictures.decode(content, frame, MAX_PIXELS, FORMATS)[0]
    except InputError as exc:
        raise DataError(f"{name}: {exc.message}", exc.hint) from None
