"""The guard's patience, with a real serving process that is stopped in mid-start."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from edgekit_agent.guard import Guard, Verdict
from tests.support.serving import stand


def looks(guard: Guard, seconds: float) -> Verdict | None:
    """The first verdict within some seconds; it pings once in a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if verdict := guard.look():
            return verdict
        time.sleep(0.05)
    return None


def test_a_process_that_is_still_starting_gets_more_time(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        made.serving.process.send_signal(signal.SIGSTOP)
        assert looks(Guard(made.serving, hang_s=0.5, answered=False), 2.5) is None
        verdict = looks(Guard(made.serving, hang_s=0.5), 30)
        assert verdict is not None and verdict.reason.startswith("it has not answered for")


def test_after_its_first_answer_it_gets_no_more_than_others(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        made.serving.ping(timeout_s=60)
        guard = Guard(made.serving, hang_s=2.0, answered=False)
        assert looks(guard, 2.5) is None
        made.serving.process.send_signal(signal.SIGSTOP)
        assert looks(guard, 30) is not None


def test_a_machine_that_stood_still_is_nobodys_fault(tmp_path: Path) -> None:
    """Neither the inference under way nor the silence counts; what is still stuck afterwards does."""
    with stand(tmp_path) as made:
        made.serving.ping(timeout_s=60)
        guard = Guard(made.serving, hang_s=1.0)
        assert looks(guard, 0.3) is None
        made.serving.process.send_signal(signal.SIGSTOP)
        now = time.monotonic_ns()
        made.serving.page.words[0], made.serving.page.words[1] = now, now + 400_000_000  # as a run does
        time.sleep(2.0)  # the supervisor does not look either
        assert guard.look() is None
        verdict = looks(guard, 30)
        assert (
            verdict is not None
            and verdict.stuck
            and verdict.reason.startswith("an inference should have ended")
        )
