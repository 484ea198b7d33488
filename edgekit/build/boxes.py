"""Bounding boxes: how well two sets of detections agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_IOU = 0.5
"""Boxes that overlap by half are the same object (Everingham et al. 2010, PASCAL VOC)."""


def match(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of `found` against `wanted`.

    Both (boxes, 6): x1, y1, x2, y2, score, class; lines with a score of 0 or NaN are padding. Greedy by
    score, one to one, same class, overlap of at least MIN_IOU.
    """
    found, wanted = _real(found), _real(wanted)
    free = np.ones(len(wanted), bool)
    right = 0
    for box in found[np.argsort(-found[:, 4], kind="stable")]:
        overlap = np.where(free & (wanted[:, 5] == box[5]), iou(box, wanted), 0.0)
        if len(overlap) and overlap.max() >= MIN_IOU:
            free[int(overlap.argmax())] = False
            right += 1
    return right, len(found) - right, len(wanted) - right


def iou(box: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of one box (>= 4,) with each of `others` (n, >= 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = _area(box[None])[0] + _area(others) - shared
    return np.asarray(shared / np.maximum(union, 1e-12), np.float64)


def _area(boxes: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _real(boxes: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(boxes[np.nan_to_num(boxes[:, 4]) > 0])
