from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.errors import InputError
from edgekit.runtimes._preprocess import apply, to_engine
from tests.unit.runtimes import kws

SPECS = (TensorSpec("image", "FP32", (-1, 2, 2)), TensorSpec("length", "INT64", (-1,)))
STEPS = Preprocessing((Affine("image", "UINT8", scale=0.5, offset=128.0),))


def given(**change: Any) -> dict[str, Any]:
    inputs = {"length": np.array([4, 5], np.int64), "image": np.full((2, 2, 2), 130, np.uint8), **change}
    return {name: value for name, value in inputs.items() if value is not None}


def test_stored_type_is_scaled_and_order_is_the_specs() -> None:
    got = to_engine(given(image=np.array([[[0, 127], [128, 255]]] * 2, np.uint8)), SPECS, STEPS)
    assert list(got) == ["image", "length"]
    assert got["image"].dtype == np.float32
    assert got["image"][1].tolist() == [[-64.0, -0.5], [0.0, 63.5]]


def test_engine_type_passes_untouched() -> None:
    inputs = given(image=np.ones((2, 2, 2), np.float32))
    got = to_engine(inputs, SPECS, STEPS)
    assert got["image"] is inputs["image"]
    assert got["length"] is inputs["length"]


def test_equal_types_are_not_scaled_twice() -> None:
    step = Affine("x", "FP32", scale=2.0, offset=0.0)
    got = to_engine({"x": np.ones(1, np.float32)}, (TensorSpec("x", "FP32", (-1,)),), Preprocessing((step,)))
    assert got["x"].tolist() == [1.0]


def test_the_engine_type_may_be_half() -> None:
    step = Affine("x", "INT8", scale=0.25, offset=-2.0)
    got = to_engine(
        {"x": np.array([-2, 2], np.int8)}, (TensorSpec("x", "FP16", (-1,)),), Preprocessing((step,))
    )
    assert got["x"].dtype == np.float16
    assert got["x"].tolist() == [0.0, 1.0]


def test_kws_scale_is_the_published_one() -> None:
    stored, _ = kws.data()
    got = apply(kws.SCALE.affine[0], stored)
    assert np.allclose(got, (stored.astype(np.float64) - 83) * 0.5847029089927673, rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": None}, "input 'length' is missing"),
        ({"mask": np.zeros(2)}, "unknown input 'mask', the model has image, length"),
        ({"image": np.zeros((2, 2, 2), np.int32)}, "input 'image': expected data type FP32, got INT32"),
        ({"image": np.zeros((2, 2, 3), np.uint8)}, "input 'image': expected shape (-1, 2, 2), got (2, 2, 3)"),
        ({"image": np.zeros((2, 2), np.float32)}, "input 'image': expected shape (-1, 2, 2), got (2, 2)"),
        ({"image": [1]}, "input 'image': expected an array, got list"),
        ({"length": np.zeros(2, np.int32)}, "input 'length': expected data type INT64, got INT32"),
        ({"length": np.zeros(3, np.int64)}, "inputs differ in batch size: 'image' has 2, 'length' has 3"),
    ],
)
def test_refusals_name_the_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        to_engine(given(**change), SPECS, STEPS)
    assert caught.value.message == message


def test_hint_says_what_to_send() -> None:
    with pytest.raises(InputError) as caught:
        to_engine(given(image=np.zeros((2, 2, 2), np.int32)), SPECS, STEPS)
    assert caught.value.hint == "send FP32 or UINT8 of shape (batch, 2, 2)"
