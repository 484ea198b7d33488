"""Histograms on fixed bins and their stability index."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.model import Bins, Reference
from edgekit.errors import FormatError
from edgekit.runtimes import _drift as drift
from tests.support.bundles import make_config

GENERATOR = np.random.default_rng(5)
VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)
THIRDS = Bins("x", (0.0, 1.0), (0.25, 0.5, 0.25))


def test_deciles_of_values_that_are_all_different() -> None:
    values = GENERATOR.standard_normal(5000).astype(np.float32)
    ends = drift.edges(values, 10)
    assert len(ends) == 9 and not set(ends) & set(values.astype(float).tolist())
    assert drift.histogram(ends, values) == pytest.approx(500, abs=2)


def test_ties_have_a_bin_of_their_own() -> None:
    """Half of a picture is zero, as many are; what is not zero lies between 1 and 2."""
    values = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])
    ends = drift.edges(values, 10)
    counts = drift.histogram(ends, values)
    zeros = int(np.searchsorted(ends, 0.0, side="right"))
    assert counts[zeros] == 500 and ends[zeros - 1] < 0 < ends[zeros] < 1
    assert counts.sum() == 1000 and len(ends) <= 9
    # A device that rounds otherwise counts alike.
    assert (drift.histogram(ends, values + 1e-7) == counts).all()


@pytest.mark.parametrize("value", [0.0, 3.5, -1e-3, 1e12])
def test_what_differs_from_a_constant_is_seen(value: float) -> None:
    ends = drift.edges(np.full(200, value), 10)
    (table,) = drift.tables([Bins("x", tuple(ends), (0.0, 1.0, 0.0))], 200)
    same, other = np.full((500, 1), value), np.full((500, 1), value + max(1.0, abs(value)))
    assert table.psi(table.count(same))[0] < 0.02
    assert table.psi(table.count(other))[0] > 2


@given(VALUES, st.integers(2, 12))
def test_edges_ascend_are_finite_and_few(values: list[float], bins: int) -> None:
    ends = drift.edges(np.array([*values, math.inf, -math.inf, math.nan]), bins)
    assert ends == sorted(set(ends)) and all(map(math.isfinite, ends))
    assert len(ends) <= 2 * (bins - 1)
    assert drift.edges(np.array([math.nan, math.inf]), bins) == []


@given(VALUES, VALUES, VALUES)
def test_two_histograms_add_up_to_that_of_all(
    known: list[float], ours: list[float], theirs: list[float]
) -> None:
    ends = drift.edges(np.array(known), 4)
    shares = drift.histogram(ends, np.array(known)) / len(known)
    (table,) = drift.tables([Bins("x", tuple(ends), tuple(shares.tolist()))], len(known))
    a, b = (np.array(values)[:, None] for values in (ours, theirs))
    both = np.concatenate([a, b])
    assert (table.count(a) + table.count(b) == table.count(both)).all()
    assert (table.count(both)[0] == drift.histogram(ends, both)).all()
    assert table.psi(table.count(a) + table.count(b)) == pytest.approx(table.psi(table.count(both)))


def test_columns_are_counted_apart_though_their_bins_differ_in_number() -> None:
    found = [dataclasses.replace(THIRDS, column=2), Bins("x", (5.0,), (0.5, 0.5), 0)]
    (table,) = drift.tables(found, 100)
    assert (table.tensor, table.columns, table.real.tolist()[1]) == ("x", (2, 0), [True, True, False])
    values = np.array([[-1.0, 9.0], [0.0, 4.0], [math.nan, math.inf]])
    assert table.count(values)[0].tolist() == [2, 1, 0]
    whole = np.column_stack([np.repeat([-1.0, 0.5, 2.0], [25, 50, 25]), np.repeat([4.0, 6.0], 50)])
    assert table.psi(table.count(whole)) == pytest.approx([0, 0], abs=1e-6)


def test_the_index_by_hand_and_by_chance() -> None:
    p, q = np.array([1e6, 1e6]), np.array([9e5, 1e5])
    assert drift.psi(p, q) == pytest.approx(0.4 * math.log(0.9 / 0.5) - 0.4 * math.log(0.1 / 0.5), rel=1e-4)
    assert math.isfinite(drift.psi(np.array([100, 0]), np.array([0, 100])))
    # Yurdakul: (bins - 1)(1/n + 1/m) on average.
    found = [
        drift.psi(*(np.bincount(GENERATOR.integers(0, 10, n), minlength=10) for n in (500, 1000)))
        for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / 500 + 1 / 1000), rel=0.15)


@pytest.mark.parametrize(
    "found",
    [
        [Bins("x", (1.0, 0.0), (0.2, 0.3, 0.5))],
        [Bins("x", (0.0, 0.0), (0.2, 0.3, 0.5))],
        [Bins("x", (math.inf,), (0.5, 0.5))],
        [Bins("x", (math.nan,), (0.5, 0.5))],
        [Bins("x", (0.0,), (0.5, 0.4, 0.1))],
        [Bins("x", (0.0,), (0.5, 0.1))],
        [Bins("x", (0.0,), (1.5, -0.5))],
        [Bins("x", (0.0,), (math.nan, 0.5))],
        [Bins("x", (), ())],
        [Bins("x", tuple(map(float, range(99))), (0.01,) * 100)],
        [THIRDS, THIRDS],
        [THIRDS, dataclasses.replace(THIRDS, column=1)],
        [dataclasses.replace(THIRDS, column=-2)],
        [THIRDS, dataclasses.replace(THIRDS, tensor="y"), THIRDS],
        [dataclasses.replace(THIRDS, tensor=str(n)) for n in range(65)],
    ],
)
def test_bins_that_are_none_are_refused(found: list[Bins]) -> None:
    with pytest.raises(FormatError, match="reference: "):
        drift.tables(found, 100)


def test_a_reference_must_fit_its_variant() -> None:
    config = make_config()  # x (batch, 4), y (batch, 2)
    last, answers = dataclasses.replace(THIRDS, column=3), dataclasses.replace(THIRDS, tensor="y")
    drift.check(Reference(100, (last,), (), answers), config)
    for inputs, outputs, classes in (
        ((dataclasses.replace(THIRDS, column=4),), (), None),
        ((answers,), (), None),
        ((), (THIRDS,), None),
        ((), (), THIRDS),
    ):
        with pytest.raises(FormatError, match="no such"):
            drift.check(Reference(100, inputs, outputs, classes), config)
    with pytest.raises(FormatError):
        drift.tables([THIRDS], 0)
