"""From an encoded picture to UINT8 pixels of a model's input: decode, resize, order the colours. With Pillow.

Resizing is Pillow's bilinear with antialiasing. Orientation tags are ignored, transparency is dropped, as in
torchvision and TensorFlow. The builder reads its data with this very code.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.model import Image
from edgekit.errors import EngineMissing, InputError

SENT = ("JPEG", "PNG")
"""Formats that a client may send."""
GREY = 114
"""Bars of a letterbox, as the YOLO family draws them."""


@dataclass(frozen=True)
class Frame:
    """What a picture is made into."""

    height: int
    width: int
    color: str
    """"RGB", "BGR" or "L"."""
    layout: str
    """"NCHW" or "NHWC"."""
    resize: str = "stretch"
    """"stretch", "crop" or "letterbox"."""
    keep: float = 1.0
    """crop: share of the shorter side that is kept."""

    @property
    def channels(self) -> int:
        return 1 if self.color == "L" else 3


@dataclass(frozen=True)
class Placement:
    """Where a picture's pixels went: x in the frame = x in the picture * scale_x + left. All in pixels."""

    width: int
    """Of the picture."""
    height: int
    frame_width: int
    frame_height: int
    scale_x: float
    scale_y: float
    left: float = 0.0
    top: float = 0.0


def frame_of(image: Image, shape: Sequence[int]) -> Frame:
    """The frame of an input of `shape`, as a bundle describes it."""
    height, width = shape[2:4] if image.layout == "NCHW" else shape[1:3]
    return Frame(height, width, image.color, image.layout, image.resize, image.keep)


def library() -> Any:
    """Pillow's module. Raises EngineMissing."""
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise EngineMissing(
            "pictures need Pillow, which is not installed here",
            "pip install 'edgekit-agent[pictures]', or apt-get install python3-pil",
        ) from None
    return Pillow


def decode(
    content: bytes, frame: Frame, max_pixels: int, formats: Sequence[str]
) -> tuple[NDArray[np.uint8], Placement]:
    """(height, width, channels), and how the picture was placed in it.

    The size that the header states is checked before a pixel is decoded. Raises InputError.
    """
    pillow = library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(content), formats=formats) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise InputError(
                        f"{width} x {height} pixels, more than the {max_pixels} allowed",
                        "make it smaller first",
                    )
                if picture.mode.startswith(("I", "F")):
                    raise InputError(f"{picture.mode} pixels, not 8 bits per channel", "convert the picture")
                size, placement = _placed(width, height, frame)
                # Pillow resizes rows first: what lies between has the result's width and the source's height.
                if max(size[0] * height, size[0] * size[1]) > max(max_pixels, frame.width * frame.height):
                    raise InputError(f"{width} x {height} pixels: too narrow to be resized", "crop it first")
                fitted = _fit(pillow, _colored(picture, frame.color), frame, size, placement)
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as exc:  # Pillow and its codecs raise a dozen types
        raise InputError(f"not a sound picture: {_words(exc)}", "replace or remove it") from None
    array = np.asarray(fitted, np.uint8).reshape(frame.height, frame.width, frame.channels)
    return (array[:, :, ::-1] if frame.color == "BGR" else array), placement


def _words(exc: Exception) -> str:
    text = str(exc)
    return "of no known format" if "cannot identify" in text else text or type(exc).__name__


def _colored(picture: Any, color: str) -> Any:
    if "transparency" in picture.info and picture.mode == "P":
        picture = picture.convert("RGBA")
    return picture.convert("L" if color == "L" else "RGB")


def _placed(width: int, height: int, frame: Frame) -> tuple[tuple[int, int], Placement]:
    """The size (width, height) that a picture is resized to, and where its corner then lies in the frame."""
    across, down = frame.width, frame.height
    size = (across, down)
    left = top = 0
    if frame.resize == "letterbox":
        ratio = min(across / width, down / height)
        size = (max(1, min(across, round(width * ratio))), max(1, min(down, round(height * ratio))))
        left, top = (across - size[0]) // 2, (down - size[1]) // 2
    elif frame.resize == "crop":
        # As torchvision's Resize and CenterCrop: the tighter side first, the other cut to a whole number.
        wide, tall = round(across / frame.keep), round(down / frame.keep)
        if wide / width >= tall / height:
            size = (wide, max(down, int(wide * height / width)))
        else:
            size = (max(across, int(tall * width / height)), tall)
        left, top = -round((size[0] - across) / 2), -round((size[1] - down) / 2)
    return size, Placement(width, height, across, down, size[0] / width, size[1] / height, left, top)


def _fit(pillow: Any, picture: Any, frame: Frame, size: tuple[int, int], placement: Placement) -> Any:
    """`picture` at the frame's size."""
    target = (frame.width, frame.height)
    if frame.resize == "stretch" and picture.size == target:
        return picture
    resized = picture.resize(size, pillow.Resampling.BILINEAR)
    left, top = round(placement.left), round(placement.top)
    if frame.resize == "letterbox":
        whole = pillow.new(picture.mode, target, GREY if picture.mode == "L" else (GREY,) * 3)
        whole.paste(resized, (left, top))
        return whole
    return (
        resized.crop((-left, -top, target[0] - left, target[1] - top)) if frame.resize == "crop" else resized
    )
