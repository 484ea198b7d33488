"""What is looked at, when, and what is said of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.build import reference
from edgekit.bundle.model import Bins, Reference
from edgekit.errors import FormatError
from edgekit.runtimes import Array
from edgekit.runtimes._pace import Pace
from edgekit_agent.serve import sketch as sketches
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.sketch import WINDOW, Sketch, largest, sketch
from tests.support.serving import linear
from tests.unit.agent.serve.test_lane import THREADED, Bench, Rows, run

CONFIG = linear().load.config
GENERATOR = np.random.default_rng(3)


def rows(count: int, shift: float = 0.0) -> Array:
    return (GENERATOR.standard_normal((count, 4)) + shift).astype(np.float32)


def known() -> Reference:
    found = reference.of({"x": (known := rows(2000))}, {"y": known}, classifies=True)
    assert found is not None
    return found


REFERENCE = known()


def feed(made: Sketch, count: int, make: Callable[[int], Array] = rows, each: int = 10) -> None:
    for _ in range(count // each):
        array = make(each)
        made.look([{"x": array}], [{"y": array}])


def test_nothing_is_said_of_too_few_rows() -> None:
    made = Sketch(REFERENCE, CONFIG)
    feed(made, WINDOW - 10)
    assert (made.inputs(), made.outputs(), made.rows) == ([], [], WINDOW - 10)
    assert largest(made.inputs()) is None
    feed(made, 10)
    assert [one.tensor for one in made.inputs() + made.outputs()] == ["x", "y"]


def test_the_same_the_shifted_and_the_forgotten() -> None:
    made = Sketch(REFERENCE, CONFIG)
    feed(made, 2 * WINDOW)
    assert largest(made.inputs() + made.outputs()) < 0.1  # type: ignore[operator]

    def one_column(count: int) -> Array:
        return rows(count) + np.array([0, 0, 2, 0], np.float32)

    feed(made, 2 * WINDOW, one_column)
    (shift,), (answers,) = made.inputs(), made.outputs()
    assert shift.column == 2 and shift.psi > 0.25 and answers.psi > 0.25
    feed(made, 2 * WINDOW)
    assert largest(made.inputs() + made.outputs()) < 0.1  # type: ignore[operator]
    assert made.rows == 6 * WINDOW


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_the_window_is_one_to_two_long_and_nothing_is_lost(sizes: list[int]) -> None:
    made = Sketch(Reference(100, (Bins("x", (0.0,), (0.5, 0.5), 1),), ()), CONFIG)
    for size in sizes:
        made.look([{"x": np.ones((size, 4), np.float32)}], [{}])
    (window,) = made._inputs
    recent = int((window.total - window._before).sum())
    assert int(window.total.sum()) == window.rows == sum(sizes)
    assert recent == sum(sizes) if sum(sizes) < WINDOW else WINDOW <= recent < 2 * (WINDOW + 40)


@pytest.mark.parametrize("shape", [(1, 4), (1, 3, 40, 40), (64, 3, 7, 7), (300, 4), (257,)])
def test_few_values_of_a_large_input_and_all_of_them_in_the_long_run(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    seen: set[int] = set()
    for turn in range(200):
        values = sketches._spread(array.flat, array.size, 256, turn)
        assert 0 < len(values) <= 256
        assert len(values) == array.size or len(values) >= 80
        seen |= set(values.tolist())
    assert len(seen) == array.size


def test_pictures_are_counted_by_values_but_judged_by_pictures() -> None:
    config = dataclasses.replace(
        CONFIG, inputs=(dataclasses.replace(CONFIG.inputs[0], shape=(-1, 3, 30, 30)),)
    )
    pictures = GENERATOR.random((200, 3, 30, 30)).astype(np.float32)
    found = reference.of({"x": pictures}, {}, classifies=False)
    assert found is not None
    made = Sketch(found, config)
    for _ in range(WINDOW):
        made.look([{"x": GENERATOR.random((1, 3, 30, 30)).astype(np.float32)}], [{}])
    assert made.rows == WINDOW
    (shift,) = made.inputs()
    assert (shift.tensor, shift.column) == ("x", -1) and shift.psi < 0.05
    for _ in range(2 * WINDOW):
        made.look([{"x": pictures[:1].transpose(0, 1, 3, 2) / 2}], [{}])  # darker, and not contiguous
    assert made.inputs()[0].psi > 0.25


def test_requests_that_share_a_run_take_turns_and_failed_ones_none() -> None:
    made = Sketch(REFERENCE, CONFIG)
    arrays = [np.full((1, 4), value, np.float32) for value in (-9, 0, 9)]
    for _ in range(6):
        made.look([{"x": array} for array in arrays], [{"y": array} for array in arrays])
    (window,) = made._inputs
    assert window.total[:, 0].tolist() == [2] * 4 and window.total[:, -1].tolist() == [2] * 4
    made.look([{"x": arrays[0]}], [ValueError()])
    assert (made.requests, made.rows) == (6, 6)


def test_what_does_not_fit_is_complained_about_once(caplog: pytest.LogCaptureFixture) -> None:
    made = Sketch(REFERENCE, CONFIG)
    made.look([{"x": np.ones((1, 2), np.float32)}], [{"y": np.ones((1, 4), np.float32)}])
    assert made.due == math.inf and "drift is no longer watched: IndexError" in caplog.text
    wrong = dataclasses.replace(REFERENCE, inputs=(Bins("z", (0.0,), (0.5, 0.5)),))
    with pytest.raises(FormatError):
        Sketch(wrong, CONFIG)
    assert sketch(wrong, CONFIG, None) is None and "drift is not watched: reference" in caplog.text
    made = Sketch(REFERENCE, CONFIG)
    odd = np.array([[math.nan, math.inf, -math.inf, 0]], np.float32)
    made.look([{"x": odd}], [{"y": odd}])
    assert made.rows == 1 and made.due < math.inf


def test_a_release_that_is_loaded_again_goes_on() -> None:
    first = sketch(REFERENCE, CONFIG, None)
    assert first is not None
    assert sketch(REFERENCE, CONFIG, first) is first
    assert sketch(dataclasses.replace(REFERENCE, rows=1999), CONFIG, first) is not first
    assert sketch(None, CONFIG, first) is None


@pytest.mark.parametrize("limits", [Limits(), THREADED])
def test_runs_on_the_loop_and_in_threads_are_looked_at_now_and_then(limits: Limits) -> None:
    async def test(bench: Bench) -> None:
        counters = bench.core.find("kws").counters
        counters.sketch = made = Sketch(REFERENCE, CONFIG)
        answers = [bench.ask(Rows(value, rows=2)) for value in (1, 2, 13)]
        assert [await answer for answer in answers] == [[2.0, 2.0], [4.0, 4.0], 500]
        assert (made.requests, made.rows) == (1, 2)
        assert made.due <= time.monotonic() + sketches.INTERVAL_S
        made.due += 60
        await bench.ask(Rows(3))
        assert made.requests == 1
        made.due = 0
        await bench.ask(Rows(3))
        assert (made.requests, made.rows) == (2, 3)

    run(test, limits, Pace(0.001, 8, 0.002))
