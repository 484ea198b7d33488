"""What a certificate says of the evaluation rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from edgekit import codec
from edgekit.build import reference
from edgekit.bundle.model import Certificate, Reference
from edgekit.runtimes import Array
from edgekit.runtimes import _drift as drift
from tests.support.bundles import make_certificate

GENERATOR = np.random.default_rng(11)
ROWS = GENERATOR.standard_normal((1000, 3)).astype(np.float32)


def made(inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, classifies: bool = False) -> Reference:
    found = reference.of(inputs, outputs, classifies=classifies)
    assert found is not None
    return found


def test_a_table_by_column_and_its_answers_by_class() -> None:
    scores = np.eye(4, dtype=np.float32)[np.repeat([0, 1, 3], [500, 300, 200])]
    found = made({"x": ROWS}, {"y": scores}, classifies=True)
    assert [(one.tensor, one.column, len(one.edges)) for one in found.inputs] == [
        ("x", 0, 9), ("x", 1, 9), ("x", 2, 9),
    ]  # fmt: skip
    assert all(sum(one.shares) == pytest.approx(1) and min(one.shares) > 0.09 for one in found.inputs)
    assert found.outputs == () and found.classes is not None
    assert (found.classes.edges, found.classes.shares) == ((0.5, 1.5, 2.5), (0.5, 0.3, 0.0, 0.2))


def test_pictures_together_and_scores_by_value() -> None:
    pictures = np.zeros((100, 3, 8, 8), np.uint8)
    pictures[:, :, 2:6] = GENERATOR.integers(1, 256, (100, 3, 4, 8))
    found = made({"image": pictures, "tokens": np.zeros((100, 4), np.int64)}, {"y": ROWS[:100, :1]})
    (one,) = found.inputs
    assert (one.tensor, one.column, found.rows) == ("image", -1, 100)
    assert 0.5 in one.shares  # the zeros
    assert found.classes is None and [out.tensor for out in found.outputs] == ["y"]


def test_a_constant_column_and_values_that_are_no_numbers() -> None:
    rows = ROWS.copy()
    rows[:, 1] = 7
    rows[5, 2] = math.nan
    rows[6, 2] = math.inf
    found = made({"x": rows}, {})
    assert found.inputs[1].shares == (0.0, 1.0, 0.0)
    assert all(map(math.isfinite, (*found.inputs[2].edges, *found.inputs[2].shares)))
    (nothing,) = made({"x": np.full((100, 2, 2), math.nan, np.float32)}, {}).inputs
    assert (nothing.edges, nothing.shares) == ((), (1.0,))


def test_few_rows_have_few_bins_or_none() -> None:
    assert reference.of({"x": ROWS[:99]}, {}, classifies=False) is None
    assert {len(one.edges) for one in made({"x": ROWS[:149]}, {}).inputs} == {1}
    assert {len(one.edges) for one in made({"x": ROWS[:500]}, {}).inputs} == {9}
    assert reference.of({"ids": np.zeros((1000, 4), np.int64)}, {}, classifies=False) is None


def test_more_classes_than_rows_can_tell_share_bins() -> None:
    scores = GENERATOR.random((1000, 400)).astype(np.float32)
    found = made({}, {"y": scores}, classifies=True).classes
    assert found is not None and len(found.shares) <= 34
    assert max(found.shares) < 0.06


def test_it_is_small_however_wide_the_rows() -> None:
    wide = {f"input{n}": GENERATOR.standard_normal((500, 600)).astype(np.float32) for n in range(12)}
    found = made(wide, wide)
    assert len(found.inputs) <= 24 and len(codec.to_json(found)) < 12_000
    drift.tables(found.inputs, found.rows)
    (table,) = drift.tables(made({"x": wide["input0"]}, {}).inputs, 500)
    assert len(table.columns) == 24 and table.columns[0] == 0 and table.columns[-1] == 599


def test_rows_agree_with_their_own_reference() -> None:
    """Counted as a device does, all rows of it."""
    found = made({"x": ROWS}, {"y": ROWS}, classifies=True)
    (table,) = drift.tables(found.inputs, found.rows)
    assert table.psi(table.count(ROWS)) == pytest.approx(0, abs=1e-4)
    others = GENERATOR.standard_normal((500, 3))
    assert table.psi(table.count(others)).max() < 0.1
    assert table.psi(table.count(others + 2)).min() > 1


def test_the_certificates_of_before_keep_their_bytes() -> None:
    before = make_certificate("v")
    assert "reference" not in codec.to_plain(before)
    told = dataclasses.replace(before, reference=made({"x": ROWS}, {"y": ROWS}, classifies=True))
    assert codec.from_canonical_json(Certificate, codec.to_json(told), what="it") == told
