"""FastestDet (COCO, 352 x 352): photos to rows, and outputs to boxes.

`boxes` is what `edgekit build --decode benchmarks/zoo/fastestdet.py:boxes` runs; it needs NumPy only.
The network's output is (rows, 85, 22, 22): objectness, x, y, w, h, 80 class scores per cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE = 352
MIN_SCORE = 0.65
MAX_BOXES = 60
NMS_IOU = 0.45


def boxes(outputs: dict[str, Any]) -> dict[str, Any]:
    """(rows, MAX_BOXES, 6): x1, y1, x2, y2 in 0..1, score, class; unused lines are zero."""
    (raw,) = outputs.values()
    found = np.zeros((len(raw), MAX_BOXES, 6), np.float32)
    for row, cells in zip(found, raw, strict=True):
        kept = _suppress(_candidates(cells))[:MAX_BOXES]
        row[: len(kept)] = kept
    return {"boxes": found}


def _candidates(cells: Any) -> Any:
    """Cells above MIN_SCORE, (n, 6). Score = objectness^0.6 * class^0.4, as in the authors' test code."""
    _, height, width = cells.shape
    classes = cells[5:]
    best = classes.argmax(axis=0)
    score = np.maximum(cells[0], 0) ** 0.6 * np.maximum(classes.max(axis=0), 0) ** 0.4
    y, x = np.nonzero(score > MIN_SCORE)
    centre_x, centre_y = (x + np.tanh(cells[1, y, x])) / width, (y + np.tanh(cells[2, y, x])) / height
    half_w, half_h = _sigmoid(cells[3, y, x]) / 2, _sigmoid(cells[4, y, x]) / 2
    corners = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
    return np.stack([*corners, score[y, x], best[y, x].astype(np.float32)], axis=1)


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def _suppress(found: Any) -> Any:
    """Non-maximum suppression per class, best first."""
    ordered = found[np.argsort(-found[:, 4], kind="stable")]
    kept: list[Any] = []
    for box in ordered:
        if all(box[5] != other[5] or _iou(box, other) < NMS_IOU for other in kept):
            kept.append(box)
    return np.array(kept, np.float32).reshape(-1, 6)


def _iou(a: Any, b: Any) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / max(float(union), 1e-9))


def prepare(photos: Path, target: Path) -> None:
    """An .npz of rows (n, 3, 352, 352) in 0..1, BGR: "calibration" and "evaluation" crops do not overlap in
    flip and scale, though they show the same five photos, so figures are optimistic."""
    from PIL import Image

    calibration: list[Any] = []
    evaluation: list[Any] = []
    for path in sorted(photos.glob("*.jpg")):
        with Image.open(path) as image:
            picture = image.convert("RGB")
        width, height = picture.size
        for i, share in enumerate((1.0, 0.9, 0.8, 0.7, 0.6, 0.5)):
            for j, (left, top) in enumerate(((0, 0), (1, 1), (0.5, 0.5))):
                w, h = int(width * share), int(height * share)
                corner = (int((width - w) * left), int((height - h) * top))
                crop = picture.crop((*corner, corner[0] + w, corner[1] + h)).resize((SIZE, SIZE))
                row = np.asarray(crop, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 255
                if share == 1.0 and j:
                    continue
                (evaluation if (i + j) % 2 == 0 else calibration).append(row)
                if (i + j) % 2:
                    calibration.append(row[:, :, ::-1])
    np.savez_compressed(target, calibration=np.stack(calibration), evaluation=np.stack(evaluation))
