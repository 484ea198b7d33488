from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from edgekit import codec
from edgekit.bundle.model import GoldenSpec
from edgekit.errors import DataError, EngineError, FormatError, GoldenError
from edgekit.profile import Verify
from edgekit.runtimes import Array, Session, reference
from edgekit.runtimes._golden import check, choose, classes, make
from edgekit.runtimes._preprocess import apply
from tests.unit.runtimes import kws

WEIGHT = np.eye(4, dtype=np.float32)
INPUTS = {"x": np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2, 3]]}
CLASSES = np.array([0, 1, 2, 3, 0, 1, 2, 3])


def linear(weight: Array) -> Session:
    files = reference.pack(
        [reference.Tensor("x", "FP32", (-1, 4))],
        ["y"],
        {"w": weight},
        [reference.Node("matmul", ("x", "w"), "y")],
    )
    return reference.RUNTIME.load(files, {})


def golden(max_abs_difference: float = 0.05) -> tuple[GoldenSpec, dict[str, bytes]]:
    verify = Verify(golden_samples=4, max_abs_difference=max_abs_difference)
    return make(linear(WEIGHT), INPUTS, CLASSES, verify)


def test_the_same_engine_passes() -> None:
    spec, files = golden()
    report = check(linear(WEIGHT), spec, files)
    assert (report.samples, report.max_abs_difference, report.reference_agreement) == (4, 0.0, 1.0)
    assert set(files) == {"inputs/x", "outputs/y", "reference"}
    assert codec.from_json(GoldenSpec, codec.to_json(spec), what="golden") == spec


def test_other_answers_are_refused_with_figures() -> None:
    spec, files = golden()
    with pytest.raises(GoldenError, match=r"up to 0\.25, 0\.05 allowed, over 4 samples"):
        check(linear(WEIGHT * 1.25), spec, files)
    report = check(linear(WEIGHT * 1.25), dataclasses.replace(spec, max_abs_difference=0.25), files)
    assert report.max_abs_difference == 0.25


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_not_a_number_is_a_difference(poison: float) -> None:
    spec, files = golden(max_abs_difference=1e30)
    weight = WEIGHT.copy()
    weight[2, 2] = poison
    with np.errstate(invalid="ignore"), pytest.raises(GoldenError, match="up to inf"):
        check(linear(weight), spec, files)


def test_a_variant_that_was_bad_when_certified_is_caught_by_the_reference() -> None:
    bad = linear(WEIGHT[[1, 2, 3, 0]])  # answers the next class, consistently
    spec, files = make(bad, INPUTS, CLASSES, Verify(golden_samples=4))
    with pytest.raises(GoldenError, match="0% of 4 answers agree with the source model, 75% wanted"):
        check(bad, spec, files)
    assert (
        check(bad, dataclasses.replace(spec, min_reference_agreement=0.0), files).reference_agreement == 1.0
    )


def test_without_a_reference_only_the_outputs_count() -> None:
    spec, files = make(linear(WEIGHT), INPUTS, None, Verify(golden_samples=4))
    assert spec.min_reference_agreement == 0.0
    assert "reference" not in files
    check(linear(WEIGHT), spec, files)


def test_choice_spreads_over_classes_and_rows() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    index = choose(labels, 12)
    assert np.bincount(labels[index]).tolist() == [5, 5, 2]
    assert index == sorted(set(index)) == choose(labels, 12)
    assert max(index[:5]) >= 70, "spread over the class, not its first rows"
    assert choose(labels, 1000) == list(range(100))
    assert choose(np.zeros(0), 4) == []


def test_equal_inputs_give_equal_files() -> None:
    assert golden() == golden()


def test_rows_must_match() -> None:
    session = linear(WEIGHT)
    for inputs, labels in ((INPUTS, CLASSES[:3]), ({"x": INPUTS["x"][:0]}, None), ({}, None)):
        with pytest.raises(DataError, match="rows"):
            make(session, inputs, labels, Verify())


def test_outputs_without_a_batch_are_refused() -> None:
    files = reference.pack(
        [reference.Tensor("x", "FP32", (-1, 4))],
        ["y"],
        {},
        [reference.Node("reshape", ("x",), "y", {"shape": [-1]})],
    )
    with pytest.raises(EngineError, match="'y' is not one row per sample"):
        make(reference.RUNTIME.load(files, {}), INPUTS, None, Verify())


def cut(spec: GoldenSpec, files: dict[str, bytes]) -> GoldenSpec:
    files["outputs/y"] = files["outputs/y"][:-1]
    return spec


def drop(spec: GoldenSpec, files: dict[str, bytes]) -> GoldenSpec:
    del files["reference"]
    return spec


def reshape(shape: tuple[int, ...]) -> Callable[[GoldenSpec, dict[str, bytes]], GoldenSpec]:
    return lambda spec, _: dataclasses.replace(
        spec, inputs=(dataclasses.replace(spec.inputs[0], shape=shape),)
    )


def retype(spec: GoldenSpec, _: dict[str, bytes]) -> GoldenSpec:
    return dataclasses.replace(spec, inputs=(dataclasses.replace(spec.inputs[0], datatype="FP8"),))


def none(spec: GoldenSpec, _: dict[str, bytes]) -> GoldenSpec:
    return dataclasses.replace(spec, samples=0)


@pytest.mark.parametrize(
    "damage", [cut, drop, reshape((4, -1, -4)), reshape((4, 5)), reshape((2, 8)), reshape(()), retype, none]
)
def test_files_that_do_not_fit_are_refused(
    damage: Callable[[GoldenSpec, dict[str, bytes]], GoldenSpec],
) -> None:
    spec, files = golden()
    spec = damage(spec, files)
    with pytest.raises(FormatError, match="golden samples"):
        check(linear(WEIGHT), spec, files)


def test_another_models_outputs_are_refused() -> None:
    spec, files = golden()
    spec = dataclasses.replace(spec, outputs=(dataclasses.replace(spec.outputs[0], name="z"),))
    files["outputs/z"] = files["outputs/y"]
    with pytest.raises(GoldenError, match="'z' should be"):
        check(linear(WEIGHT), spec, files)


def test_keyword_spotter_on_two_engines() -> None:
    stored, _ = kws.data()
    inputs = {kws.INPUT: apply(kws.SCALE.affine[0], stored)}
    fp32 = kws.session("onnxruntime", intra_threads=1)
    reference_classes = classes(fp32.run(inputs)[kws.OUTPUT])
    spec, files = make(fp32, inputs, reference_classes, Verify())
    chosen = np.frombuffer(files["reference"], "<i8")
    assert len(chosen) == 16
    assert set(chosen.tolist()) == set(range(12)), "all twelve words are among the samples"
    report = check(kws.session("openvino", intra_threads=1), spec, files)
    assert report.max_abs_difference < 1e-4
    assert report.reference_agreement == 1.0
