"""Numbers as data: CSV tables and rows from Python; labels as numbers, names, scores and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.build import data
from edgekit.build.data import Naming, Rows, Stored, Truth, Wanted
from edgekit.bundle.model import Preprocessing, TensorSpec
from edgekit.errors import DataError

X = TensorSpec("x", "FP32", (-1, 3))
A, B = TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "INT64", (-1,))


def csv(folder: Path, text: str) -> str:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    return str(folder / "rows.csv")


def read(
    source: str | Rows, *specs: TensorSpec, truth: Truth = "class", names: tuple[str, ...] = (), **naming: Any
) -> Stored:
    return data.read(source, Wanted(specs or (X,), Naming(**naming), truth, label_names=names))


def truth(stored: Stored) -> list[Any]:
    assert stored.truth is not None
    return list(stored.truth.tolist())


def test_columns_become_a_vector_and_the_label_stays_apart(tmp_path: Path) -> None:
    place = csv(tmp_path, "width,height,label,depth\n1,2,0,3\n4,5.5,1,-6e2\n7,8,1,9\n")
    found = read(place)
    np.testing.assert_array_equal(found.inputs["x"], np.array([[1, 2, 3], [4, 5.5, -600], [7, 8, 9]], "f4"))
    assert found.inputs["x"].dtype == np.float32
    assert truth(found) == [0, 1, 1]
    assert truth(read(f"{place}[1:2]")) == [1]
    assert read(place, truth="none").inputs["x"].shape == (3, 3)  # the label is no feature there either
    flat = TensorSpec("x", "FP32", (-1, 1, 3, 1))
    assert read(place, flat).inputs["x"].shape == (3, 1, 3, 1)
    assert read(csv(tmp_path, "1,2,3\n4,5,6\n"), truth="none").rows == 2  # no header


def test_inputs_of_their_own_column(tmp_path: Path) -> None:
    place = csv(tmp_path, "a;b;kind\n0.5;7;cat\n1,5;8;dog\n".replace("1,5", "1.5"))
    found = read(place, A, B, labels="kind")
    assert found.inputs["a"].tolist() == [[0.5], [1.5]]
    assert found.inputs["b"].tolist() == [7, 8]
    assert found.inputs["b"].dtype == np.int64
    assert found.label_names == ("cat", "dog")
    assert truth(found) == [0, 1]
    named = read(place, A, TensorSpec("c", "INT64", (-1,)), labels="kind", inputs={"c": "b"})
    assert named.inputs["c"].tolist() == [7, 8]
    assert truth(read(place, A, B, labels="kind", names=("dog", "bird", "cat"))) == [2, 0]


def test_what_the_metric_wants_decides_what_a_label_is(tmp_path: Path) -> None:
    place = csv(tmp_path, "p,q,r,score\n1,2,3,0.25\n4,5,6,1\n")
    assert truth(read(place, truth="value", labels="score")) == [0.25, 1.0]
    with pytest.raises(DataError, match="labels are float64"):
        read(place, labels="score")
    text = csv(tmp_path, 'p,q,r,said\n1,2,3,"a, b"\n4,5,6,c\n')
    assert truth(read(text, truth="value", labels="said")) == ["a, b", "c"]
    assert read(csv(tmp_path, "p,q,r\n1,2,3\n"), truth="maybe").truth is None


BAD: dict[str, tuple[str, str]] = {
    "empty": ("", "not a NumPy .npz and no other data"),
    "blank": ("\n \n", "no rows"),
    "text cell": ("p,q,r,label\n1,2,3,0\n1,Paris,3,0\n", "line 3, column 'q' 'Paris' is not a number"),
    "gap": ("p,q,r,label\n1,,3,0\n", "line 2, column 'q' is empty"),
    "ragged": ("p,q,r,label\n1,2,3\n", "line 2 has 3 cells, the header has 4"),
    "too many": ("p,q,r,s,label\n1,2,3,4,0\n", "4 columns of numbers for the 3 values of input 'x'"),
    "no label": ("p,q,r\n1,2,3\n", "no labels .column 'labels'"),
    "twice": ("p,p,r,label\n1,2,3,0\n", "two columns are called 'p'"),
    "half label": ("p,q,r,label\n1,2,3,0.5\n", "labels are float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(DataError, match=words) as refusal:
        read(csv(tmp_path, text))
    assert "rows.csv" in refusal.value.message
    assert "\n" not in refusal.value.message


def test_numbers_that_do_not_fit_the_input(tmp_path: Path) -> None:
    small = TensorSpec("x", "INT8", (-1, 3))
    with pytest.raises(DataError, match="do not fit INT8"):
        read(csv(tmp_path, "p,q,r,label\n1,2,300,0\n"), small)
    with pytest.raises(DataError, match=r"column 'r': 2\.5 is not whole"):
        read(csv(tmp_path, "p,q,r,label\n1,2,2.5,0\n"), small)
    with pytest.raises(DataError, match=r"nothing for input 'b' \(column 'b'\)"):
        read(csv(tmp_path, "a,c,label\n1,2,0\n"), A, B)
    (tmp_path / "rows.csv").write_bytes(b"caf\xe9,label\n1,2\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read(str(tmp_path / "rows.csv"))


def test_nan_in_a_table_is_refused_when_it_is_fitted(tmp_path: Path) -> None:
    rows = read(csv(tmp_path, "p,q,r,label\n1,nan,3,0\n"))
    with pytest.raises(DataError, match="NaN or infinite"):
        data.fit(rows, (X,), Preprocessing())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('0123456789.,;\t\n"-e abxl\u00e9\0\r\ufeff'), max_size=80))
def test_any_text_is_rows_or_one_line(tmp_path: Path, text: str) -> None:
    try:
        found = read(csv(tmp_path, text), truth="maybe")
    except DataError as refusal:
        assert "rows.csv" in refusal.message
        assert "\n" not in refusal.message
    else:
        assert found.inputs["x"].shape == (found.rows, 3)


def rows(*items: Any) -> Rows:
    return Rows(iter(items))


def test_rows_from_python() -> None:
    arrays = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert read(rows(*arrays), truth="none").inputs["x"].tolist() == arrays.tolist()
    found = read(rows(*((row, label) for row, label in zip(arrays, [1, 0], strict=True))))
    assert truth(found) == [1, 0]
    assert found.inputs["x"].dtype == np.float32
    lists = read(rows(([1, 2, 3], "cat"), ([4, 5, 6], "ant")))
    assert lists.inputs["x"].dtype == np.float32
    assert lists.label_names == ("ant", "cat")
    dicts = read(rows(({"a": [0.5], "b": 7}, 1), ({"a": [1.5], "b": 8}, 0)), A, B)
    assert dicts.inputs["a"].tolist() == [[0.5], [1.5]]
    assert dicts.inputs["b"].tolist() == [7, 8]
    batched = read(rows(*arrays[:, None]), truth="none")  # as a framework's loader with batch 1 gives them
    assert batched.inputs["x"].shape == (2, 3)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ((), "no rows"),
        (((np.zeros(3), 1), (np.zeros(4), 1)), "row 1 of input 'x' is float64.4."),
        (((np.zeros(3), 1), np.zeros(3)), "row 1 has no label"),
        ((({"y": np.zeros(3)}, 1),), "row 0: nothing for input 'x'"),
        ((("a,b", 1),), "row 0: input 'x' is <U3, not numbers|row 0"),
        ((([1, [2]], 1),), "row 0: no array"),
        (((np.zeros(3), [1, 2]), (np.zeros(3), [1])), "labels differ in shape"),
        (((np.zeros(3), object()),), "labels are object"),
    ],
)
def test_bad_rows_from_python(items: Iterable[Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        read(Rows(items))
    assert "rows from Python" in refusal.value.message


def test_rows_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield np.zeros((3, 1 << 20), np.float32)

    with pytest.raises(DataError, match="too many rows"):
        read(Rows(forever()), truth="none")


def test_rows_that_are_in_both_sets_are_counted() -> None:
    first = read(rows(*np.eye(3, dtype=np.float32)), truth="none")
    second = read(rows(*np.eye(3, dtype=np.float32)[1:], np.ones(3, np.float32)), truth="none")
    (said,) = data.overlap(first, second)
    assert said.startswith("2 of 3 evaluation rows")
    assert data.overlap(first, read(rows(np.ones(3, np.float32)), truth="none")) == ()


def test_a_channel_that_never_changes_is_warned_of() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3, 4, 4))
    values = np.random.default_rng(0).random((40, 3, 4, 4), np.float32)
    values[:, 2] = 0.5
    found = data.fit(read(Rows(values), spec, truth="none"), (spec,), Preprocessing(), calibrates=True)
    assert found.warnings == (
        "rows from Python: channel 2 of 'x' is 0.5 everywhere; ranges learnt from it are wrong",
    )


def test_a_scale_for_values_that_pass_untouched_is_refused() -> None:
    stored = read(Rows(np.eye(3, dtype=np.float32)), truth="none")
    with pytest.raises(DataError, match="such values pass untouched"):
        data.preprocessing(["0.5,1"], Wanted((X,)), stored, stored, image_given=False)
