"""The guard's patience, with a real serving process that is stopped in mid-start."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from edgekit_agent.guard import Guard, Verdict
from tests.support.serving import stand


def looks(guard: Guard, seconds: float) -> list[Verdict]:
    """Verdicts of some seconds; it pings once in a second."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        if verdict := guard.look():
            found.append(verdict)
        time.sleep(0.05)
    return found


def test_a_process_that_is_still_starting_gets_more_time(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        made.serving.process.send_signal(signal.SIGSTOP)
        assert looks(Guard(made.serving, hang_s=0.5, answered=False), 2.5) == []
        verdict = looks(Guard(made.serving, hang_s=0.5), 2.5)[0]
        assert verdict.reason.startswith("it has not answered for")


def test_after_its_first_answer_it_gets_no_more_than_others(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        made.serving.ping(timeout_s=60)
        guard = Guard(made.serving, hang_s=0.5, answered=False)
        assert looks(guard, 1.2) == []
        made.serving.process.send_signal(signal.SIGSTOP)
        assert looks(guard, 3.0) != []
