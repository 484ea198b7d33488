"""Evaluation metrics: what "as good as fp32" means for a model.

A metric turns outputs into one line of figures per sample (`rows`), and those into one value (`value`).
Everything else follows from that split: confidence intervals and paired tests resample the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.build import boxes, stats
from edgekit.bundle.model import ClassScore, Interval, Robustness
from edgekit.errors import DataError, InputError

Array = NDArray[Any]
Rows = NDArray[np.float64]
"""(samples, k): a metric's own figures per sample."""


@dataclass(frozen=True)
class Answers:
    """What a model said to the evaluation rows, and what was right."""

    outputs: Mapping[str, Array]
    """(rows, ...) by output name, in the model's order."""
    truth: Array | None = None
    """(rows,) classes, scores or strings; for pairs (rows / 2,)."""
    reference: Mapping[str, Array] = field(default_factory=dict)
    """The fp32 model's outputs on the same engine."""

    @property
    def first(self) -> Array:
        return next(iter(self.outputs.values()))

    @property
    def first_reference(self) -> Array:
        return next(iter(self.reference.values()))


@dataclass(frozen=True)
class Score:
    """A metric's value with its two-sided 95 % interval, and the lines it came from."""

    interval: Interval
    rows: Rows


@dataclass(frozen=True)
class Metric:
    name: str
    rows: Callable[[Answers], Rows]
    value: Callable[[Rows], float]
    needs_truth: bool = True
    classifies: bool = False
    """The truth is a class of the first output."""
    higher_is_better: bool = True
    is_share: bool = True
    """The value lies in 0..1, so that 1 - value (or value, where lower is better) is an error rate."""
    of_reference: bool = False
    """Compares with the fp32 model instead of a truth; fp32 itself has no errors then."""

    def score(self, answers: Answers) -> Score:
        """Raises DataError when outputs or truth do not fit the metric."""
        if self.needs_truth and answers.truth is None:
            raise DataError(f"the metric {self.name} needs the right answers", "add labels to the data")
        rows = self.rows(answers)
        if rows.shape[1] == 1 and self.value is _mean and set(np.unique(rows)) <= {0.0, 1.0}:
            return Score(stats.wilson(int(rows.sum()), len(rows)), rows)
        return Score(stats.bootstrap(rows, self.value), rows)

    def goodness(self, value: float) -> float:
        """Higher is better, 1 is perfect for shares."""
        return value if self.higher_is_better else 1.0 - value if self.is_share else -value


def names() -> list[str]:
    return sorted(_METRICS)


def get(name: str) -> Metric:
    """The metric called `name`, or a user's function as "FILE.py:FUNCTION". Raises InputError."""
    if ".py:" in name:
        from edgekit.build import userfunc

        return Metric(name, userfunc.rows(name), _mean, needs_truth=False, is_share=False)
    if name not in _METRICS:
        raise InputError(f"no metric is called {name!r}", f"one of {', '.join(names())}, or FILE.py:FUNCTION")
    return _METRICS[name]


def paired_p(metric: Metric, candidate: Score, baseline: Score) -> float:
    """Two-sided p-value that candidate and baseline differ by chance: exact McNemar where every sample is
    right or wrong, a paired bootstrap elsewhere."""
    before, now = baseline.rows, candidate.rows
    if metric.value is _mean and {*np.unique(before), *np.unique(now)} <= {0.0, 1.0}:
        lost, gained = int(np.sum(before > now)), int(np.sum(before < now))
        return stats.mcnemar(lost, gained)
    return stats.paired_bootstrap(now, before, metric.value)


def per_class(metric: Metric, candidate: Score, baseline: Score, truth: Array) -> tuple[ClassScore, ...]:
    """Where the damage is; empty for metrics that do not classify."""
    if not metric.classifies:
        return ()
    found = []
    for index in np.unique(truth):
        mine = truth == index
        value, base = float(candidate.rows[mine].mean()), float(baseline.rows[mine].mean())
        found.append(ClassScore(int(index), value, base, int(mine.sum())))
    return tuple(found)


def agreement(
    metric: Metric, ours: Mapping[str, Array], theirs: Mapping[str, Array], now: Score, before: Score
) -> float:
    """Share of rows with the same class; for other metrics, of samples with the same figures."""
    if metric.classifies:
        return float(_agreement(Answers(ours, reference=theirs)).mean())
    return float(np.mean(np.all(np.isclose(now.rows, before.rows), axis=1)))


def _mean(rows: Rows) -> float:
    return float(rows[:, 0].mean())


SIGNIFICANT = 0.01
"""Of each disturbance: with three of them, three builds in a hundred warn without a reason."""
DISTINCT = 0.02
"""Of a share: a variant that loses less than this beyond fp32 is not worth a warning."""


def robustness_warnings(metric: Metric, found: Sequence[Robustness]) -> tuple[str, ...]:
    """A line for each disturbance that hurts a variant distinctly more than fp32."""
    return tuple(
        f"{one.disturbance} hurts it more than fp32: {metric.name} {one.clean:.4f} -> {one.value:.4f}, fp32 "
        f"{one.baseline_clean:.4f} -> {one.baseline:.4f} on {one.samples} rows (p = {one.p:.2g})"
        for one in found
        if one.p < SIGNIFICANT and _excess(metric, one) >= (DISTINCT if metric.is_share else 0)
    )


def _excess(metric: Metric, one: Robustness) -> float:
    """How much more the variant loses than fp32, in the metric's unit."""
    lost = metric.goodness(one.clean) - metric.goodness(one.value)
    return lost - (metric.goodness(one.baseline_clean) - metric.goodness(one.baseline))


def _top(k: int) -> Callable[[Answers], Rows]:
    def rows(answers: Answers) -> Rows:
        scores, truth = _classes(answers.first), _truth(answers)
        if k == 1:
            return _column(np.argmax(scores, axis=1) == truth)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return _column((best == truth[:, None]).any(axis=1))

    return rows


def _agreement(answers: Answers) -> Rows:
    ours, theirs = _classes(answers.first), _classes(answers.first_reference)
    return _column(np.argmax(ours, axis=1) == np.argmax(theirs, axis=1))


def _f1_rows(answers: Answers) -> Rows:
    """(true positives, false positives, false negatives) per image, against the fp32 model's boxes."""
    ours, theirs = _detections(answers.first), _detections(answers.first_reference)
    return np.array([boxes.match(a, b) for a, b in zip(ours, theirs, strict=True)], np.float64)


def _f1(rows: Rows) -> float:
    """F1 = 2 TP / (2 TP + FP + FN); van Rijsbergen 1979. Nothing found and nothing there is 1."""
    right, extra, missed = (float(total) for total in rows.sum(axis=0))
    total = 2 * right + extra + missed
    return float(2 * right / total) if total else 1.0


def _spearman_rows(answers: Answers) -> Rows:
    """(prediction, truth) per sample. Vectors come in consecutive pairs whose cosine is the prediction."""
    values = np.asarray(answers.first, np.float64)
    truth = answers.truth
    if truth is None or truth.dtype.kind not in "iuf":
        raise DataError("spearman needs numbers as truth", "store one score per row, or per pair of rows")
    if values.ndim == 2 and values.shape[1] > 1:
        left, right = values[0::2], values[1::2]
        if len(left) != len(right) or len(truth) not in (len(left), len(values)):
            raise DataError(f"spearman: {len(values)} vectors and {len(truth)} scores are no pairs")
        truth = truth[::2] if len(truth) == len(values) else truth
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        values = np.sum(left * right, axis=1) / np.maximum(norms, 1e-12)
    values = values.reshape(len(values), -1)[:, 0]
    _same_length(values, truth)
    return np.stack([values, truth.astype(np.float64)], axis=1)


def _spearman(rows: Rows) -> float:
    """Pearson's correlation of the ranks (Spearman 1904), ties by their mean rank."""
    ours, truth = stats.ranks(rows[:, 0]), stats.ranks(rows[:, 1])
    if np.ptp(ours) == 0 or np.ptp(truth) == 0:
        return 0.0  # a constant has no order
    return float(np.corrcoef(ours, truth)[0, 1])


def _cer_rows(answers: Answers) -> Rows:
    """(edits, characters) per line."""
    truth = _strings(answers.truth, "truth")
    said = _strings(answers.first, "first output")
    _same_length(said, truth)
    pairs = zip(said.ravel(), truth.ravel(), strict=True)
    return np.array([(stats.edit_distance(str(a), str(b)), len(str(b))) for a, b in pairs], np.float64)


def _cer(rows: Rows) -> float:
    """Character error rate: edits (Levenshtein 1966) over characters of the truth."""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1.0))


def _absolute_error(answers: Answers) -> Rows:
    truth = answers.truth
    if truth is None or truth.dtype.kind not in "iuf":
        raise DataError("mean-absolute-error needs numbers as truth")
    values = np.asarray(answers.first, np.float64)
    _same_length(values, truth)
    difference = np.abs(values.reshape(len(values), -1) - truth.astype(np.float64).reshape(len(truth), -1))
    return np.asarray(difference.mean(axis=1, keepdims=True), np.float64)


def _column(values: Array) -> Rows:
    return np.asarray(values, np.float64)[:, None]


def _classes(scores: Array) -> Array:
    if scores.ndim < 2 or scores.shape[-1] < 2:
        raise DataError(
            f"the first output has shape {list(scores.shape)}: not scores per class",
            "choose another --metric, or --decode it",
        )
    return scores.reshape(len(scores), -1, scores.shape[-1])[:, 0] if scores.ndim > 2 else scores


def _truth(answers: Answers) -> NDArray[np.int64]:
    truth = answers.truth
    if truth is None or truth.dtype.kind not in "iu":
        kind = "absent" if truth is None else f"of type {truth.dtype}"
        raise DataError(f"the labels are {kind}", "store one class number per row")
    _same_length(answers.first, truth)
    return truth.astype(np.int64)


def _detections(output: Array) -> Array:
    if output.ndim != 3 or output.shape[2] != 6:
        raise DataError(
            f"f1-agreement: the first output has shape {list(output.shape)}, not (rows, boxes, 6)",
            "turn it into x1, y1, x2, y2, score, class with --decode FILE.py:FUNCTION",
        )
    return output


def _strings(values: Array | None, what: str) -> Array:
    if values is None or values.dtype.kind != "U":
        raise DataError(f"cer: the {what} is not text", "turn outputs into strings with --decode")
    return values


def _same_length(left: Sequence[Any] | Array, right: Sequence[Any] | Array) -> None:
    if len(left) != len(right):
        raise DataError(f"{len(left)} answers but {len(right)} right answers", "one label per row")


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _top(1), _mean, classifies=True),
        Metric("top5", _top(5), _mean, classifies=True),
        Metric("agreement", _agreement, _mean, needs_truth=False, of_reference=True),
        Metric("f1-agreement", _f1_rows, _f1, needs_truth=False, of_reference=True),
        Metric("spearman", _spearman_rows, _spearman),
        Metric("cer", _cer_rows, _cer, higher_is_better=False),
        Metric("mean-absolute-error", _absolute_error, _mean, higher_is_better=False, is_share=False),
    )
}
