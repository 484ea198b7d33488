"""TensorFlow Serving's requests and documents as values, without a server."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, InputError
from edgekit_agent.serve import jsons, tfs, tfs_http
from edgekit_agent.serve.tfs_http import Target
from tests.support.serving import linear

ONE = (TensorSpec("x", "FP32", (-1, 2)),)
TWO = (TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "FP32", (-1, 2)))
CONFIG = linear().load.config


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("7", 7), ("0", 0), ("1.2.3", 1002003), ("0.1.0", 1000), ("2026.11.28", 2026011028), ("1.2", 1002000),
        ("3-rc1", 3000000), ("1.0.0+build.7", 1000000), ("nightly", 1), ("", 1), ("9" * 30, 999999000000),
        ("\u0663", 1),
    ],
)  # fmt: skip
def test_versions_become_numbers(version: str, number: int) -> None:
    assert tfs.number(version) == number < 2**63


@pytest.mark.parametrize(
    ("asked", "means_it"),
    [
        ("", True),
        ("0", True),
        ("1000", True),
        ("0.1.0", True),
        ("1", False),
        ("0.1", False),
        ("9" * 40, False),
    ],
)
def test_versions_that_are_asked_for(asked: str, means_it: bool) -> None:
    assert tfs.wanted(asked, "0.1.0") == ("" if means_it else asked)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("kws", Target("kws")),
        ("kws:predict", Target("kws", what="predict")),
        ("kws:classify", Target("kws", what="classify")),
        ("kws:regress", Target("kws", what="regress")),
        ("kws/metadata", Target("kws", what="metadata")),
        ("kws/versions/3", Target("kws", "3")),
        ("kws/versions/3:predict", Target("kws", "3", what="predict")),
        ("kws/versions/3/metadata", Target("kws", "3", what="metadata")),
        ("kws/labels/stable:predict", Target("kws", label="stable", what="predict")),
        ("kws/labels/stable/metadata", Target("kws", label="stable", what="metadata")),
        ("kws:explain", None),
        ("kws:", None),
        (":predict", None),
        ("", None),
        ("kws/metadata:predict", None),
        ("kws/versions", None),
        ("kws/versions/3/more", None),
        ("kws/other/3", None),
    ],
)
def test_paths(path: str, target: Target | None) -> None:
    assert tfs_http.target(path.split("/")) == target


def plain(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: (array.dtype.name, array.tolist()) for name, array in arrays.items()}


def test_rows() -> None:
    assert plain(tfs_http.rows([[1, 2], [3, 4.5]], ONE)) == {"x": ("float32", [[1, 2], [3, 4.5]])}
    assert plain(tfs_http.rows([{"x": [1, 2]}], ONE)) == {"x": ("float32", [[1, 2]])}
    two = [{"a": 1, "b": [1, 2]}, {"b": [3, 4], "a": 2}]
    assert plain(tfs_http.rows(two, TWO)) == {"a": ("int32", [1, 2]), "b": ("float32", [[1, 2], [3, 4]])}
    text = (TensorSpec("t", "BYTES", (-1,)),)
    assert tfs_http.rows(["a", {"b64": "Yg=="}], text)["t"].tolist() == [b"a", b"b"]
    assert tfs_http.rows([{"t": {"b64": "Yg=="}}], text)["t"].tolist() == [b"b"]
    assert tfs_http.rows([{"b64": [1, 2]}], (TensorSpec("b64", "FP32", (-1, 2)),))["b64"].tolist() == [[1, 2]]


def test_columns() -> None:
    assert plain(tfs_http.columns([[1, 2]], ONE)) == {"x": ("float32", [[1, 2]])}
    assert plain(tfs_http.columns({"x": [[1, 2]]}, ONE)) == {"x": ("float32", [[1, 2]])}
    assert tfs_http.columns({"b64": "Yg=="}, (TensorSpec("t", "BYTES", ()),))["t"].tolist() == b"b"


@pytest.mark.parametrize(
    ("instances", "specs", "words"),
    [
        ({}, ONE, "must be a list"),
        (7, ONE, "must be a list"),
        ([], ONE, "at least one"),
        ([[1, 2], {"x": [1, 2]}], ONE, "same names, or none"),
        ([{"a": 1, "b": [1, 2]}, {"a": 1}], TWO, "same names, or none"),
        ([[1, 2]], TWO, "several inputs, name them: a, b"),
        ([{"zz": 1}], ONE, "unknown input 'zz', the model has x"),
        ([{"x": [1]}, {"x": [1, 2]}], ONE, "differ in length"),
    ],
)
def test_rows_that_are_refused(instances: Any, specs: tuple[TensorSpec, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tfs_http.rows(instances, specs)


def test_examples_share_a_context() -> None:
    document = {"context": {"a": 5}, "examples": [{"b": [1, 2]}, {"b": [[3, 4]]}]}
    assert plain(tfs_http.examples(document, TWO, 8)) == {
        "a": ("int32", [5, 5]),
        "b": ("float32", [[1, 2], [3, 4]]),
    }


@pytest.mark.parametrize(
    ("document", "specs", "words"),
    [
        ({}, ONE, "list of 1 to 8"),
        ({"examples": []}, ONE, "list of 1 to 8"),
        ({"examples": [{"x": [1, 2]}] * 9}, ONE, "list of 1 to 8"),
        ({"examples": [[1, 2]]}, ONE, "must be JSON object"),
        ({"examples": [{"x": [1, 2]}], "context": []}, ONE, "must be JSON object"),
        ({"examples": [{"x": [1, 2]}], "context": {"x": [1, 2]}}, ONE, "in the context and in an example"),
        ({"examples": [{"y": 1}]}, ONE, "unknown input 'y'"),
        ({"examples": [{}]}, ONE, "missing in an example"),
        ({"examples": [{"x": [1, 2, 3]}]}, ONE, "do not fill"),
        ({"examples": [{"x": 1}]}, (TensorSpec("x", "FP32", (1,)),), "no batch"),
    ],
)
def test_examples_that_are_refused(document: Any, specs: tuple[TensorSpec, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tfs_http.examples(document, specs, 8)


def written(document: Any) -> Any:
    return json.loads(jsons.dumps(document))


def test_answers_in_rows_and_columns() -> None:
    outputs = {"a": np.array([1, 2], np.int32), "b": np.array([[1, 2], [3, 4]], np.float32)}
    assert written(tfs_http.to_rows(TWO, outputs)) == [{"a": 1, "b": [1.0, 2.0]}, {"a": 2, "b": [3.0, 4.0]}]
    assert written(tfs_http.to_columns(TWO, outputs)) == {"a": [1, 2], "b": [[1.0, 2.0], [3.0, 4.0]]}
    one = (TWO[1],)
    assert written(tfs_http.to_rows(one, outputs)) == [[1.0, 2.0], [3.0, 4.0]]
    assert written(tfs_http.to_columns(one, outputs)) == [[1.0, 2.0], [3.0, 4.0]]
    data = np.array([b"a"], object)
    assert tfs_http.to_rows((TensorSpec("y_bytes", "BYTES", (-1,)),), {"y_bytes": data}) == [{"b64": "YQ=="}]
    with pytest.raises(EngineError, match="no common batch"):
        tfs_http.to_rows(TWO, {**outputs, "a": np.array([1], np.int32)})
    with pytest.raises(InputError, match="no common batch"):
        tfs_http.check_rows((*TWO, TensorSpec("c", "FP32", (3,))))


def test_classes_and_values() -> None:
    scores = np.array([[0.25, 0.5, 0.25, 0]], np.float32)
    assert tfs.classify(CONFIG, {"y": scores}) == [[("a", 0.25), ("b", 0.5), ("c", 0.25), ("d", 0.0)]]
    unlabelled = dataclasses.replace(CONFIG, labels=())
    assert tfs.classify(unlabelled, {"y": scores})[0][1] == ("", 0.5)
    assert tfs.regress(CONFIG, {"y": np.array([[1.5], [2]], np.float32)}) == [1.5, 2.0]
    with pytest.raises(InputError, match="4 values"):
        tfs.regress(CONFIG, {"y": scores})
    flat = dataclasses.replace(CONFIG, outputs=(TensorSpec("y", "FP32", (4,)),))
    with pytest.raises(InputError, match="no scores"):
        tfs.check_scores(flat)


@pytest.mark.parametrize("name", ["", "serving_default", *tfs.METHODS])
def test_signatures(name: str) -> None:
    tfs.check_signature(name)
    with pytest.raises(InputError, match="not found in signature def"):
        tfs.check_signature(name + "x")
