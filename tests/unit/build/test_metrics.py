"""Metrics against figures worked out by hand or by SciPy and scikit-learn's published definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.build import boxes, metrics, stats, userfunc
from edgekit.build.metrics import Answers
from edgekit.errors import DataError, InputError

RNG = np.random.default_rng(3)
SCORES = np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 3, 5]] + RNG.uniform(0, 0.1, (6, 6)).astype(np.float32)
TRUTH = np.array([0, 1, 2, 3, 4, 5])


def said(output: np.ndarray, truth: np.ndarray | None = None, reference: np.ndarray | None = None) -> Answers:
    return Answers({"y": output}, truth, {} if reference is None else {"y": reference})


def test_accuracy_is_a_share_with_wilsons_interval() -> None:
    score = metrics.get("accuracy").score(said(SCORES, TRUTH))
    assert score.interval == stats.wilson(5, 6)
    assert score.rows.ravel().tolist() == [1, 1, 1, 1, 0, 1]


def test_top5_of_six_classes_misses_only_the_last_guess() -> None:
    scores = SCORES.copy()
    scores[4, 4] = -1.0
    assert metrics.get("top5").score(said(scores, TRUTH)).interval.value == pytest.approx(5 / 6)
    scores[4, 4] = 0.5
    assert metrics.get("top5").score(said(scores, TRUTH)).interval.value == 1.0


def test_agreement_needs_no_truth() -> None:
    other = SCORES.copy()
    other[0] = other[1]
    assert metrics.get("agreement").score(said(other, reference=SCORES)).interval.value == pytest.approx(
        5 / 6
    )


def test_spearman_of_values_and_of_pairs() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    values = np.array([[0.1], [0.2], [0.2], [0.9], [0.4]])
    # Ranks 1, 2.5, 2.5, 5, 4 against 1..5: SciPy's spearmanr gives 0.8720815992723809.
    assert metrics.get("spearman").score(said(values, truth)).interval.value == pytest.approx(0.87208160)
    angles = np.array([0.9, 0.6, 0.3, 0.2, 0.1])
    pairs = np.empty((10, 2))
    pairs[0::2] = [1.0, 0.0]
    pairs[1::2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert metrics.get("spearman").score(said(pairs, truth)).interval.value == pytest.approx(1.0)
    assert metrics.get("spearman").score(said(np.ones((5, 1)), truth)).interval.value == 0.0


def test_character_error_rate() -> None:
    score = metrics.get("cer").score(
        said(np.array(["kitten", "abc", ""]), np.array(["sitting", "abc", "xy"]))
    )
    assert score.interval.value == pytest.approx((3 + 0 + 2) / 12)
    assert score.interval.low <= score.interval.value <= score.interval.high


def test_mean_absolute_error() -> None:
    answers = said(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0]))
    assert metrics.get("mean-absolute-error").score(answers).interval.value == pytest.approx(1.0)


def test_boxes_match_by_class_and_overlap() -> None:
    wanted = np.array([[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 2], [0, 0, 0, 0, 0, 0]], float)
    shifted = wanted + np.array([1, 0, 1, 0, 0, 0])
    assert boxes.match(wanted, wanted) == (2, 0, 0)
    assert boxes.match(shifted[:1], wanted) == (1, 0, 1)
    other_class = wanted.copy()
    other_class[0, 5] = 7
    assert boxes.match(other_class, wanted) == (1, 1, 1)
    assert boxes.iou(wanted[0], shifted[:1])[0] == pytest.approx(90 / 110)


def test_f1_agreement_is_one_against_itself_and_where_there_is_nothing() -> None:
    found = np.array([[[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 2]]], float)
    metric = metrics.get("f1-agreement")
    assert metric.score(said(found, reference=found)).interval.value == 1.0
    assert metric.score(said(found[:, :1], reference=found)).interval.value == pytest.approx(2 / 3)
    assert metric.score(said(found * 0, reference=found * 0)).interval.value == 1.0


def test_paired_tests() -> None:
    accuracy = metrics.get("accuracy")
    right = accuracy.score(said(np.eye(6)[TRUTH], TRUTH))
    half = accuracy.score(said(np.eye(6)[TRUTH[::-1]], TRUTH))
    assert metrics.paired_p(accuracy, right, right) == 1.0
    assert metrics.paired_p(accuracy, half, right) == stats.mcnemar(6, 0)
    error = metrics.get("mean-absolute-error")
    truth = np.arange(40.0)
    good, bad = (error.score(said(truth[:, None] + noise, truth)) for noise in (0.1, 0.5))
    assert metrics.paired_p(error, good, good) == 1.0
    assert metrics.paired_p(error, bad, good) < 0.01


def test_classes_are_told_apart() -> None:
    accuracy = metrics.get("accuracy")
    now, before = accuracy.score(said(SCORES, TRUTH)), accuracy.score(said(np.eye(6)[TRUTH], TRUTH))
    rows = metrics.per_class(accuracy, now, before, TRUTH)
    assert [(row.index, row.value, row.baseline, row.samples) for row in rows][4] == (4, 0.0, 1.0, 1)


@pytest.mark.parametrize(
    ("name", "answers", "words"),
    [
        ("accuracy", said(SCORES), "needs the right answers"),
        ("accuracy", said(np.ones((6, 1)), TRUTH), "not scores per class"),
        ("accuracy", said(SCORES, TRUTH[:5]), "6 answers but 5 right answers"),
        ("accuracy", said(SCORES, TRUTH + 0.5), "labels are of type float64"),
        ("f1-agreement", said(SCORES, reference=SCORES), r"not \(rows, boxes, 6\)"),
        ("cer", said(SCORES, np.array(["a"] * 6)), "first output is not text"),
        ("spearman", said(np.ones((5, 3)), np.ones(2)), "are no pairs"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, answers: Answers, words: str) -> None:
    with pytest.raises(DataError, match=words):
        metrics.get(name).score(answers)


def test_an_unknown_metric_says_what_there_is() -> None:
    with pytest.raises(InputError, match="no metric is called 'acuracy'"):
        metrics.get("acuracy")


def test_a_users_function_scores_and_decodes_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "import os, numpy as np\n"
        "def near(outputs, truth, reference):\n"
        "    assert 'EDGEKIT_SECRET' not in os.environ\n"
        "    return -abs(outputs['y'][:, 0] - truth)\n"
        "def double(outputs):\n"
        "    return {'z': outputs['y'] * 2}\n"
        "def wrong(outputs, truth, reference):\n"
        "    return np.ones(3) / outputs['nothing']\n"
        "def shape(outputs, truth, reference):\n"
        "    return np.ones((6, 2))\n"
    )
    answers = said(np.arange(6.0)[:, None], TRUTH + 0.5)
    assert metrics.get(f"{code}:near").score(answers).interval.value == pytest.approx(-0.5)
    assert userfunc.decode(f"{code}:double", {"y": np.ones(2)})["z"].tolist() == [2, 2]
    with pytest.raises(DataError, match="line 8: KeyError: 'nothing'"):
        metrics.get(f"{code}:wrong").score(answers)
    with pytest.raises(DataError, match="not one finite figure per row"):
        metrics.get(f"{code}:shape").score(answers)
    with pytest.raises(InputError, match=r"not FILE\.py:FUNCTION"):
        metrics.get(f"{tmp_path}/none.py:near")
