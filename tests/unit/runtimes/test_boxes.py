"""Boxes: decoding, suppression and the way back to the picture that was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.zoo import fastestdet
from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._pictures import Frame, Placement, _placed
from edgekit.runtimes._pipeline import boxes
from edgekit.runtimes._pipeline.boxes import Found

SIZE = (352, 352)


def grid(seed: int = 1) -> Array:
    """A network's output with a few hundred boxes above the threshold."""
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((85, 22, 22)).astype(np.float32)
    cells[0] = rng.uniform(0, 1, (22, 22))
    cells[5:] = rng.uniform(0, 0.9, (80, 22, 22))
    cells[3:5] -= 2.0
    return cells


def test_fastestdet_is_what_the_benchmark_computes() -> None:
    for seed in range(5):
        cells = grid(seed)
        found = boxes.suppress(boxes.decode(cells, "fastestdet", fastestdet.MIN_SCORE, SIZE), 0.45, 60)
        (wanted,) = fastestdet.boxes({"o": cells[None]})["boxes"]
        wanted = wanted[wanted[:, 4] > 0]
        assert 20 < len(wanted) == len(found.scores)
        np.testing.assert_allclose(found.corners, wanted[:, :4], atol=1e-5)
        np.testing.assert_allclose(found.scores, wanted[:, 4], atol=1e-6)
        assert found.classes.tolist() == wanted[:, 5].astype(int).tolist()


def test_yolo_formats() -> None:
    """One box of class 1 at (100, 50), 40 x 20 pixels, in an input of 200 x 100."""
    five = np.zeros((3, 5 + 2), np.float32)
    five[1] = [100, 50, 40, 20, 0.5, 0.1, 0.8]
    found = boxes.decode(five, "yolov5", 0.3, (100, 200))
    np.testing.assert_allclose(found.corners, [[0.4, 0.4, 0.6, 0.6]])
    np.testing.assert_allclose(found.scores, [0.4])
    assert found.classes.tolist() == [1]
    eight = np.delete(five, 4, axis=1).T
    found = boxes.decode(eight, "yolov8", 0.3, (100, 200))
    np.testing.assert_allclose(found.corners, [[0.4, 0.4, 0.6, 0.6]])
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("fastestdet", (85, 22)),
        ("fastestdet", (5, 2, 2)),
        ("yolov5", (10, 5)),
        ("yolov8", (4, 10)),
        ("yolov8", (8,)),
    ],
)
def test_outputs_of_another_shape(form: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="is not of the format"):
        boxes.decode(np.zeros(shape, np.float32), form, 0.5, SIZE)


def test_nan_is_an_error_and_nothing_found_is_none() -> None:
    with pytest.raises(EngineError, match="NaN"):
        boxes.decode(np.full((85, 22, 22), np.nan, np.float32), "fastestdet", 0.5, SIZE)
    found = boxes.suppress(boxes.decode(np.zeros((85, 22, 22), np.float32), "fastestdet", 0.5, SIZE), 0.5, 10)
    place = Placement(10, 10, 352, 352, 35.2, 35.2)
    assert boxes.answer(found, place, ()) == {"boxes": [], "width": 10, "height": 10}


def test_candidates_and_answers_are_bounded() -> None:
    many = np.zeros((20000, 6), np.float32)
    many[:, :4] = np.random.default_rng(1).uniform(0, 352, (20000, 4))
    many[:, 4:] = 1.0
    found = boxes.decode(many, "yolov5", 0.1, SIZE)
    assert len(found.scores) == boxes.MAX_CANDIDATES
    assert len(boxes.suppress(found, 1.0, 100).scores) == 100


def test_suppression_is_per_class_and_greedy() -> None:
    corners = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 1, 0.5], [2, 2, 3, 3]], np.float64)
    classes = np.array([0, 0, 0, 0])
    found = Found(corners, np.array([0.9, 0.8, 0.7, 0.6]), classes)
    assert boxes.suppress(found, 0.6, 10).scores.tolist() == [0.9, 0.7, 0.6]
    other = Found(corners, found.scores, np.array([0, 1, 0, 0]))
    assert boxes.suppress(other, 0.6, 10).scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert boxes.suppress(found, 0.6, 1).scores.tolist() == [0.9]


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 300), (32, 32)])
def test_corners_go_back_to_the_picture(resize: str, width: int, height: int) -> None:
    """A box in the middle of the picture, placed in the frame as its pixels are, is found there again."""
    frame = Frame(96, 128, "RGB", "NHWC", resize)
    _, place = _placed(width, height, frame)
    box = np.array([width * 0.4, height * 0.4, width * 0.6, height * 0.6])
    inside = (box.reshape(2, 2) * [place.scale_x, place.scale_y] + [place.left, place.top]) / [128, 96]
    found = Found(inside.reshape(1, 4), np.array([0.75]), np.array([3]))
    answer: dict[str, Any] = boxes.answer(found, place, ("a", "b", "c", "d"))
    assert answer["width"] == width and answer["height"] == height
    (listed,) = answer["boxes"]
    assert listed["label"] == "d" and listed["index"] == 3 and listed["score"] == 0.75
    np.testing.assert_allclose(listed["box"], box, atol=0.051)


def test_corners_beyond_the_picture_are_clipped() -> None:
    found = Found(np.array([[-0.5, -0.5, 1.5, 1.5]]), np.array([0.5]), np.array([9]))
    answer = boxes.answer(found, Placement(40, 20, 80, 80, 2.0, 4.0), ("a",))
    assert answer["boxes"] == [{"index": 9, "score": 0.5, "box": [0.0, 0.0, 40.0, 20.0]}]
