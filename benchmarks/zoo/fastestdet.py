"""FastestDet (COCO, 352 x 352): photos to rows, and outputs to boxes.

`boxes` is what `edgekit build --decode benchmarks/zoo/fastestdet.py:boxes` runs; it needs NumPy only.
The network's output is (rows, 85, 22, 22): objectness, x, y, w, h, 80 class scores per cell.
"""

from __future__ import annotations

import sys
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
    """An .npz of `crops`."""
    np.savez_compressed(target, **crops(photos))


def crops(photos: Path) -> dict[str, Any]:
    """Rows (n, 3, 352, 352) in 0..1, BGR: 80 of "calibration" and 125 of "evaluation". No crop is in both,
    though all show the same five photos, so figures are optimistic."""
    calibration: list[Any] = []
    evaluation: list[Any] = []
    for path in sorted(photos.glob("*.jpg")):
        calibration.append(_crop(path, 1.0, 0, 0))
        for i, share in enumerate((0.9, 0.8, 0.7, 0.6, 0.5)):
            for j, (left, top) in enumerate(((0, 0), (1, 1), (0.5, 0.5))):
                row = _crop(path, share, left, top)
                calibration += [row, row[:, :, ::-1]] if (i + j) % 2 else []
        for share in (0.95, 0.85, 0.75, 0.65, 0.55):
            corners = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))
            evaluation += [_crop(path, share, left, top) for left, top in corners]
    return {"calibration": np.stack(calibration), "evaluation": np.stack(evaluation)}


def _crop(path: Path, share: float, left: float, top: float) -> Any:
    """(3, SIZE, SIZE) of `share` of the photo's sides; `left`, `top`: where in what remains."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    width, height = int(picture.width * share), int(picture.height * share)
    x, y = int((picture.width - width) * left), int((picture.height - height) * top)
    crop = picture.crop((x, y, x + width, y + height)).resize((SIZE, SIZE))
    return np.asarray(crop, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 255


def main(photos: Path, folder: Path) -> None:
    """`calibration.npz` and `evaluation.npz` in `folder`, named as the model names its input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in crops(photos).items():
        np.savez(folder / f"{name}.npz", **{"input.1": rows})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
