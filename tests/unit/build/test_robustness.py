"""Disturbed rows: what they do to a variant beyond what they do to fp32; rows unlike those calibrated on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.build import disturb, metrics, stats
from edgekit.build.data import Data, drift, drift_warnings
from edgekit.bundle.model import Drift, Robustness

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.random((20, 3, 8, 12), np.float32)
SERIES = GENERATOR.standard_normal((20, 100, 4), np.float32)
TABLE = GENERATOR.standard_normal((20, 6), np.float32) * np.array([1, 10, 100, 1, 1, 0], np.float32)


def test_what_is_done_to_which_input() -> None:
    assert list(disturb.disturbances({"x": IMAGES})) == ["noise", "brightness", "shift"]
    assert list(disturb.disturbances({"x": SERIES})) == ["noise", "gain", "shift"]
    assert list(disturb.disturbances({"x": TABLE})) == ["noise", "gain"]
    assert disturb.disturbances({"ids": np.zeros((9, 16), np.int64)}) == {}
    assert disturb.disturbances({"x": np.zeros(9, np.float32)}) == {}
    both = disturb.disturbances({"x": IMAGES, "ids": np.arange(20)})
    assert all(rows["ids"].tolist() == list(range(20)) for rows in both.values())


@pytest.mark.parametrize("array", [IMAGES, SERIES, TABLE, (IMAGES * 255).astype(np.uint8)])
def test_disturbances_are_of_the_same_form_different_and_repeatable(array: disturb.Array) -> None:
    first, again = (disturb.disturbances({"x": array}) for _ in range(2))
    for kind, rows in first.items():
        changed = rows["x"]
        assert (changed.shape, changed.dtype) == (array.shape, array.dtype)
        assert not np.array_equal(changed, array)
        np.testing.assert_array_equal(changed, again[kind]["x"])
        if kind != "gain":
            assert changed.min() >= array.min()
            assert changed.max() <= array.max()


def test_sizes_of_disturbances() -> None:
    noisy = disturb.disturbances({"x": TABLE})["noise"]["x"] - TABLE
    assert noisy[:, 2].std() == pytest.approx(10, rel=0.5)  # a tenth of that column's 100
    assert noisy[:, 5].std() == 0  # a constant column stays one
    moved = disturb.disturbances({"x": IMAGES})["shift"]["x"]
    np.testing.assert_array_equal(moved[..., 1:], IMAGES[..., :-1])  # 12 / 16 of a pixel: one
    np.testing.assert_array_equal(moved[..., 0], IMAGES[..., 0])
    late = disturb.disturbances({"x": SERIES})["shift"]["x"]
    np.testing.assert_array_equal(late[:, 6:], SERIES[:, :-6])  # 100 / 16


@given(st.integers(1, 500), st.integers(1, 300))
def test_rows_are_chosen_in_pairs(rows: int, count: int) -> None:
    chosen = disturb.places(rows, count)
    assert 0 < len(chosen) <= max(count, 2)
    assert len(set(chosen)) == len(chosen)
    assert max(chosen) < rows
    if rows > 1:
        assert all(b == a + 1 and a % 2 == 0 for a, b in zip(chosen[::2], chosen[1::2], strict=True))


def test_a_loss_beyond_fp32s_is_significant_and_an_equal_one_is_not() -> None:
    right = np.ones((200, 1))
    hurt = np.where(GENERATOR.random((200, 1)) < 0.3, 0.0, 1.0)
    mean = lambda rows: float(rows.mean())  # noqa: E731
    assert stats.excess_loss((right, hurt), (right, right), mean) < 0.002
    assert stats.excess_loss((right, hurt), (right, hurt), mean) == 1.0
    assert stats.excess_loss((right, right), (right, hurt), mean) == 1.0


def robustness(value: float, baseline: float, p: float, clean: float = 0.9) -> Robustness:
    return Robustness("noise", 200, value, baseline, clean, 0.9, p)


@pytest.mark.parametrize(
    ("metric", "found", "warns"),
    [
        ("accuracy", robustness(0.7, 0.85, 0.001), True),
        ("accuracy", robustness(0.7, 0.85, 0.02), False),  # chance
        ("accuracy", robustness(0.84, 0.85, 0.001), False),  # too little to matter
        ("accuracy", robustness(0.4, 0.4, 0.9), False),  # fp32 suffers as much
        ("cer", robustness(0.99, 0.92, 0.001), True),  # lower is better
        ("cer", robustness(0.92, 0.99, 0.001), False),
        ("mean-absolute-error", robustness(0.905, 0.9, 0.001), True),  # has no scale: the test alone decides
    ],
)
def test_when_it_warns(metric: str, found: Robustness, warns: bool) -> None:
    lines = metrics.robustness_warnings(metrics.get(metric), [found])
    assert len(lines) == warns
    assert all("noise hurts it more than fp32" in line for line in lines)


def test_the_stability_index() -> None:
    values = GENERATOR.standard_normal(4000)
    assert stats.psi(values[:2000], values[2000:]) < 0.02
    assert stats.psi(values[:2000], values[2000:] + 1) > 0.8
    assert stats.psi(np.zeros(50), np.zeros(50)) == pytest.approx(0)
    assert np.isfinite(stats.psi(np.zeros(50), np.ones(50)))
    # By hand: two bins of a half each against 0.9 and 0.1, counts large enough for the added half.
    expected, seen = np.arange(10_000) % 2, np.arange(10_000) % 10 == 0
    by_hand = (0.9 - 0.5) * np.log(0.9 / 0.5) + (0.1 - 0.5) * np.log(0.1 / 0.5)
    assert stats.psi(expected, seen.astype(int)) == pytest.approx(by_hand, rel=0.01)


def rows(name: str, array: disturb.Array) -> Data:
    return Data(name, {"x": array}, None, "")


def test_drift_is_found_and_chance_is_not() -> None:
    table = GENERATOR.standard_normal((1000, 6)).astype(np.float32)
    for count in (16, 32, 200):
        known, seen = rows("calibration", table[:count]), rows("evaluation", table[200:])
        assert drift_warnings(drift(known.inputs, seen.inputs), known, seen) == ()
    moved = table[200:].copy()
    moved[:, 3] += 2
    known, seen = rows("calibration", table[:200]), rows("evaluation", moved)
    (found,) = drift(known.inputs, seen.inputs)
    assert found.column == 3
    (line,) = drift_warnings((found,), known, seen)
    assert line.startswith("column 3 of 'x' is distributed otherwise in evaluation than in calibration")
    loud = rows("evaluation", table[200:] * 3)
    lines = drift_warnings(drift(known.inputs, loud.inputs), known, loud)
    assert "outside the range of calibration" in lines[0]
    (images,) = drift({"x": IMAGES}, {"x": IMAGES * 2})
    assert images.outside == pytest.approx(0.5, abs=0.05)
    assert images.column == -1
    assert drift({"ids": np.arange(9)}, {"ids": np.arange(9)}) == ()


def test_certificates_of_before_keep_their_spelling() -> None:
    from edgekit import codec
    from edgekit.bundle.model import Affine, Certificate, Preprocessing

    later = {f.name for f in dataclasses.fields(Certificate) if "edgekit.later" in f.metadata}
    assert {"robustness", "drift"} <= later
    assert codec.to_plain(Preprocessing((Affine("x", "UINT8", 1.0, 0.0),))) == {
        "affine": [{"input": "x", "datatype": "UINT8", "scale": 1.0, "offset": 0.0}]
    }
    assert codec.from_plain(Drift, codec.to_plain(Drift("x", 0.0, 0.1)), what="drift") == Drift("x", 0.0, 0.1)
