"""Calibration and evaluation data: what is read, and what bad data gets."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.build import data
from edgekit.build.data import Data, Naming, Wanted, scaling
from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.errors import DataError

X = TensorSpec("x", "FP32", (-1, 4))
RAW = Preprocessing()
ROWS = np.linspace(-1, 1, 160, dtype=np.float32).reshape(40, 4)
LABELS = np.arange(40) % 2


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def fitted(
    text: str, specs: tuple[TensorSpec, ...], steps: Preprocessing, naming: Naming, *, labels: bool = True
) -> Data:
    stored = data.read(text, Wanted(specs, naming, "class" if labels else "none"))
    return data.fit(stored, specs, steps, calibrates=not labels)


def load(text: str, specs: tuple[TensorSpec, ...] = (X,), labels: bool = True, **naming: Any) -> Data:
    return fitted(text, specs, RAW, Naming(**naming), labels=labels)


def test_rows_are_selected_and_labels_with_them(tmp_path: Path) -> None:
    text = saved(tmp_path, x=ROWS, labels=LABELS.astype(np.uint8))
    found = load(f"{text}[10:25]")
    assert found.rows == 15
    np.testing.assert_array_equal(found.inputs["x"], ROWS[10:25])
    assert found.truth is not None
    assert found.truth.dtype == np.int64
    np.testing.assert_array_equal(found.truth, LABELS[10:25])
    assert load(f"{text}[38:]").rows == 2
    assert load(f"{text}[:3]").rows == 3
    assert load(text).rows == 40


def test_the_digest_is_of_the_selected_rows_only(tmp_path: Path) -> None:
    text = saved(tmp_path, x=ROWS, labels=LABELS)
    part = load(f"{text}[0:20]").sha256
    saved(tmp_path, x=np.concatenate([ROWS[:20], ROWS[:20] * 2]), labels=LABELS)
    assert load(f"{text}[0:20]").sha256 == part != load(text).sha256
    expected = hashlib.sha256(f"x {ROWS.dtype.str} (20, 4)\n".encode() + ROWS[:20].tobytes())
    assert load(f"{text}[0:20]", labels=False).sha256 == expected.hexdigest()


def test_a_lone_input_takes_the_lone_array(tmp_path: Path) -> None:
    text = saved(tmp_path, features=ROWS, y=LABELS)
    found = fitted(text, (X,), RAW, Naming(labels="y"))
    assert list(found.inputs) == ["x"]


def test_two_inputs_are_named(tmp_path: Path) -> None:
    specs = (X, TensorSpec("z", "INT64", (-1,)))
    text = saved(tmp_path, a=ROWS, b=LABELS, labels=LABELS)
    found = fitted(text, specs, RAW, Naming({"x": "a", "z": "b"}))
    assert list(found.inputs) == ["x", "z"]


def test_affine_turns_stored_values_into_engine_values(tmp_path: Path) -> None:
    stored = np.arange(160, dtype=np.uint8).reshape(40, 4)
    text = saved(tmp_path, x=stored, labels=LABELS)
    rows = data.read(text, Wanted((X,)))
    (step,) = data.preprocessing(["0.5,128"], Wanted((X,)), rows, rows, image_given=False).affine
    assert step == Affine("x", "UINT8", 0.5, 128.0)
    found = fitted(text, (X,), Preprocessing((step,)), Naming())
    np.testing.assert_array_equal(found.inputs["x"], (stored.astype(np.float32) - 128) * 0.5)


@pytest.mark.parametrize(
    ("name", "text"),
    [("serving_default_input_1:0", "serving_default_input_1:0:0.5,1"), ("x", "x:0.5,1"), ("a:b", "0.5,1")],
)
def test_affine_names_an_input_that_may_hold_colons(name: str, text: str) -> None:
    spec = TensorSpec(name, "FP32", (-1, 4))
    assert scaling.affine(text, (spec,), {name: "UINT8"}) == Affine(name, "UINT8", 0.5, 1.0)


@pytest.mark.parametrize("text", ["y:1,0", "1", "1,2,3", "a,b", "", "nan,0", "inf,0", "1,inf", "0,5"])
def test_bad_affine(text: str) -> None:
    with pytest.raises(DataError, match="--affine"):
        scaling.affine(text, (X,), {"x": "UINT8"})


def test_affine_of_something_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="complex64"):
        scaling.affine("1,0", (X,), {"x": "complex64"})


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong shape": ({"x": ROWS[:, :3], "labels": LABELS}, "expected shape"),
    "wrong rank": ({"x": ROWS.reshape(-1), "labels": LABELS[[0] * 160]}, "expected shape"),
    "wrong dtype": ({"x": ROWS.astype(np.float64), "labels": LABELS}, "expected data type FP32, got FP64"),
    "big-endian": ({"x": ROWS.astype(">f4"), "labels": LABELS}, "expected data type FP32"),
    "text": ({"x": np.full((40, 4), "a"), "labels": LABELS}, "expected data type FP32"),
    "no labels": ({"x": ROWS}, "no labels"),
    "float labels": ({"x": ROWS, "labels": LABELS * 1.0}, "labels are float64"),
    "labels of two dimensions": ({"x": ROWS, "labels": np.eye(40, dtype=int)}, r"shape \(40, 40\)"),
    "too few labels": ({"x": ROWS, "labels": LABELS[:39]}, "39 labels for 40 rows"),
    "one label, no array": ({"x": ROWS, "labels": np.int64(1)}, "'labels' is not an array with rows"),
    "a number": ({"x": np.float32(1), "labels": LABELS}, "'x' is not an array with rows"),
    "no rows": ({"x": ROWS[:0], "labels": LABELS[:0]}, r"\[0\] rows"),
    "NaN": ({"x": np.where(ROWS > 0.9, np.nan, ROWS).astype(np.float32), "labels": LABELS}, "NaN"),
    "infinite": ({"x": np.where(ROWS > 0.9, np.inf, ROWS).astype(np.float32), "labels": LABELS}, "infinite"),
    "no input": ({"a": ROWS, "b": ROWS, "labels": LABELS}, "nothing for input 'x'"),
    "nothing at all": ({}, "nothing for input 'x'"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, case: str) -> None:
    arrays, words = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=words) as refusal:
        load(saved(tmp_path, **arrays))
    assert "data.npz" in refusal.value.message
    assert "\n" not in refusal.value.message


def test_no_rows_are_selected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one"):
        load(saved(tmp_path, x=ROWS, labels=LABELS) + "[40:]")


def test_inputs_with_different_numbers_of_rows(tmp_path: Path) -> None:
    specs = (X, TensorSpec("z", "INT64", (-1,)))
    with pytest.raises(DataError, match=r"\[39, 40\] rows"):
        load(saved(tmp_path, x=ROWS, z=LABELS[:39], labels=LABELS), specs)


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}], dtype=object), labels=LABELS)
    return buffer.getvalue()


def _zip(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ROWS)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=ROWS, labels=LABELS)
    return buffer.getvalue()


def _inflated() -> bytes:
    header = (
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }"
    )
    return _zip("x.npy", header.ljust(127) + b"\n")


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a NumPy .npz"),
    "random": (lambda: bytes(range(256)) * 9, "not a NumPy .npz"),
    "pickle": (_pickled, "never loaded|not a NumPy .npz"),
    "one array": (_npy, "one array, not an .npz"),
    "truncated": (lambda: _npz()[:-30], "not a NumPy .npz"),
    "zip of text": (lambda: _zip("x", b"hello"), "'x' is not an array"),
    "zip of a broken array": (lambda: _zip("x.npy", b"\x93NUMPY\x01\x00"), "not a NumPy .npz"),
    "array of 40 TB": (_inflated, "not a NumPy .npz"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    make, words = BAD_FILES[case]
    path = tmp_path / "bad.npz"
    path.write_bytes(make())
    with pytest.raises(DataError, match=words) as refusal:
        load(str(path))
    assert str(path) in refusal.value.message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_damaged_file_is_refused_or_reads_the_same_or_other_numbers(
    tmp_path: Path, place: int, flip: int, cut: bool
) -> None:
    """Whatever a disk does to the file: an array, or one line."""
    content = bytearray(_npz())
    place %= len(content)
    content[place] ^= flip
    (tmp_path / "bad.npz").write_bytes(content[:place] if cut else content)
    try:
        load(str(tmp_path / "bad.npz"))
    except DataError as refusal:
        assert "bad.npz" in refusal.message


@pytest.mark.parametrize("text", ["", "no/such.npz", "x.npz[1]", "x.npz[-3:]", "x.npz[a:b]", "[0:1]", "."])
def test_bad_places(text: str) -> None:
    with pytest.raises(DataError):
        load(text)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((40, 4), np.float32), ["every value of 'x' is 0"]),
        (np.full((8, 4), 3, np.float32), ["8 calibration rows", "every value of 'x' is 3"]),
        (ROWS[:31], ["31 calibration rows"]),
        (ROWS[:32], []),
    ],
)
def test_calibration_warnings(tmp_path: Path, rows: Any, words: list[str]) -> None:
    text = saved(tmp_path, x=rows, labels=LABELS[: len(rows)])
    warnings = load(text, labels=False).warnings
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))
    assert load(text).warnings == ()
