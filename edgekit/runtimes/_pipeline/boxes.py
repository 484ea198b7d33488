"""A detector's output to boxes, and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.runtimes._base import Array
from edgekit.runtimes._pictures import Placement
from edgekit.runtimes._pipeline.scores import DIGITS, finite, named

Real = NDArray[np.float64]

MAX_CANDIDATES = 4096
"""Boxes that suppression compares; of more only the best are kept."""


@dataclass(frozen=True, slots=True)
class Found:
    """Best first."""

    corners: Real
    """(boxes, 4): x1, y1, x2, y2, from 0 to 1 of the model's input."""
    scores: Real
    classes: NDArray[np.int64]


def decode(value: Array, form: str, min_score: float, size: tuple[int, int]) -> Found:
    """Boxes above `min_score`. `size`: height and width of the input, in which YOLO's figures are.

    fastestdet (5 + C, H, W): objectness, tx, ty, tw, th and C class scores of each cell. Centre
      (x + tanh tx) / W, (y + tanh ty) / H; size sigmoid tw, sigmoid th; score objectness^0.6 max(class)^0.4.
      Source: the authors' utils/tool.py, github.com/dog-qiuqiu/FastestDet.
    yolov5 (boxes, 5 + C): centre x, y, width, height in pixels, objectness, class scores; score objectness
      max(class). yolov8 (4 + C, boxes): the same without objectness. Source: the exporters of Ultralytics.

    Raises EngineError for another shape.
    """
    real = finite(value)
    if form == "fastestdet" and real.ndim == 3 and len(real) > 5:
        middle, extent, scores, classes = _grid(real)
    elif form == "yolov5" and real.ndim == 2 and real.shape[1] > 5:
        middle, extent, scores, classes = _rows(real[:, :4], real[:, 5:], size)
        scores = scores * real[:, 4]
    elif form == "yolov8" and real.ndim == 2 and len(real) > 4:
        middle, extent, scores, classes = _rows(real[:4].T, real[4:].T, size)
    else:
        raise EngineError(f"boxes: an output of shape {list(value.shape)} is not of the format {form!r}")
    good = np.flatnonzero(scores > min_score)
    order = good[np.argsort(-scores[good], kind="stable")][:MAX_CANDIDATES]
    half = extent[order] / 2
    corners = np.concatenate((middle[order] - half, middle[order] + half), axis=1)
    return Found(corners, scores[order], classes[order])


_Raw = tuple[Real, Real, Real, NDArray[np.int64]]
"""Centres (boxes, 2) and sizes (boxes, 2) from 0 to 1; scores and classes (boxes,)."""


def _grid(cells: Real) -> _Raw:
    _, height, width = cells.shape
    y, x = np.indices((height, width))
    middle = np.stack(((x + np.tanh(cells[1])) / width, (y + np.tanh(cells[2])) / height), axis=-1)
    extent = 1 / (1 + np.exp(-np.clip(cells[3:5], -500, 500)))
    best = cells[5:].max(axis=0)
    scores = np.maximum(cells[0], 0) ** 0.6 * np.maximum(best, 0) ** 0.4
    flat = extent.reshape(2, -1).T
    return middle.reshape(-1, 2), flat, scores.reshape(-1), cells[5:].argmax(axis=0).reshape(-1)


def _rows(frames: Real, classes: Real, size: tuple[int, int]) -> _Raw:
    height, width = size
    scale = np.array([width, height], np.float64)
    return frames[:, :2] / scale, frames[:, 2:] / scale, classes.max(axis=1), classes.argmax(axis=1)


def suppress(found: Found, iou: float, most: int) -> Found:
    """Greedy, per class: a box stays unless a better one of its class overlaps it by `iou` or more."""
    kept: list[int] = []
    alive = np.ones(len(found.scores), bool)
    for index in range(len(found.scores)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        rest = slice(index + 1, None)
        same = found.classes[rest] == found.classes[index]
        alive[rest] &= ~(same & (overlap(found.corners[index], found.corners[rest]) >= iou))
    return Found(found.corners[kept], found.scores[kept], found.classes[kept])


def overlap(box: Real, others: Real) -> Real:
    """Intersection over union of one box with each of `others` (n, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def answer(found: Found, place: Placement, labels: Sequence[str]) -> dict[str, Any]:
    """{"boxes": [{"label", "index", "score", "box": [x1, y1, x2, y2]}], "width", "height"}.

    Corners are pixels of the picture that was sent, and clipped to it.
    """
    corners = _unplaced(found.corners, place)
    listed = [
        {
            **named(int(index), labels),
            "index": int(index),
            "score": round(float(score), DIGITS),
            "box": [round(float(side), 1) for side in box],
        }
        for box, score, index in zip(corners, found.scores, found.classes, strict=True)
    ]
    return {"boxes": listed, "width": place.width, "height": place.height}


def _unplaced(corners: Real, place: Placement) -> Real:
    """From shares of the frame to pixels of the picture."""
    across = (corners[:, [0, 2]] * place.frame_width - place.left) / place.scale_x
    down = (corners[:, [1, 3]] * place.frame_height - place.top) / place.scale_y
    clipped = np.clip(across, 0, place.width), np.clip(down, 0, place.height)
    return np.stack((clipped[0][:, 0], clipped[1][:, 0], clipped[0][:, 1], clipped[1][:, 1]), axis=1)
