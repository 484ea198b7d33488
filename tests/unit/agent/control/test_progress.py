"""The page that shows running inferences, between threads and between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.errors import FormatError
from edgekit.runtimes import Array
from edgekit_agent import memfd
from edgekit_agent.progress import PATIENCE, SLOTS, Page, Watched


class Slow:
    """A session whose runs end when they are told to."""

    thread_safe = True

    def __init__(self) -> None:
        self.running, self.end = threading.Semaphore(0), threading.Event()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.running.release()
        assert self.end.wait(30)
        return dict(inputs)

    def coverage(self) -> dict[str, int]:
        return {"CPU": 1}

    def close(self) -> None:
        self.end.set()


def x(samples: int = 1) -> dict[str, Array]:
    return {"x": np.zeros((samples, 2), np.float32)}


def test_a_run_is_overdue_when_its_time_is_over_and_not_before() -> None:
    page, session = Page.create(), Slow()
    watched = Watched(session, page, run_ms=1.0, shortest_s=0.01, longest_s=10.0)
    assert watched.thread_safe and watched.coverage() == {"CPU": 1}
    thread = threading.Thread(target=watched.run, args=(x(3),))
    began = time.monotonic_ns()
    thread.start()
    assert session.running.acquire(timeout=120)
    started = time.monotonic_ns()
    allowed_ns = int(3 * PATIENCE * 1e6)  # three samples of 1 ms
    assert page.overdue_s(began + allowed_ns - 1) == 0.0
    late_s = page.overdue_s(started + allowed_ns + 500_000_000)
    assert 0.5 <= late_s <= 0.5 + (started - began) / 1e9
    watched.close()
    thread.join()
    assert page.overdue_s(started + 10**12) == 0.0, "nothing runs"
    page.close()
    assert page.overdue_s(started) == 0.0


@pytest.mark.parametrize(("run_ms", "limit_s"), [(0.001, 2.0), (60_000.0, 5.0)], ids=["shortest", "longest"])
def test_the_limits(run_ms: float, limit_s: float) -> None:
    page, session = Page.create(), Slow()
    watched = Watched(session, page, run_ms, shortest_s=2.0, longest_s=5.0)
    thread = threading.Thread(target=watched.run, args=(x(),))
    thread.start()
    assert session.running.acquire(timeout=120)
    now = time.monotonic_ns()
    assert page.overdue_s(now + int((limit_s - 0.5) * 1e9)) == 0.0
    assert page.overdue_s(now + int((limit_s + 0.5) * 1e9)) > 0.0
    watched.close()
    thread.join()


def test_a_run_that_fails_is_over() -> None:
    class Broken(Slow):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            raise ZeroDivisionError

    page = Page.create()
    with pytest.raises(ZeroDivisionError):
        Watched(Broken(), page, 0.1, 0.001, 0.01).run(x())
    assert page.overdue_s(time.monotonic_ns() + 10**12) == 0.0


def test_more_threads_than_slots_run_unwatched_and_slots_come_back() -> None:
    page, session = Page.create(), Slow()
    watched = Watched(session, page, 1.0, 0.001, 1.0)
    threads = [threading.Thread(target=watched.run, args=(x(),)) for _ in range(SLOTS + 8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert session.running.acquire(timeout=120)
    assert page.overdue_s(time.monotonic_ns() + 10**10) > 0.0
    session.end.set()
    for thread in threads:
        thread.join()
    assert page.overdue_s(time.monotonic_ns() + 10**12) == 0.0
    again = Slow()
    thread = threading.Thread(target=Watched(again, page, 1.0, 0.001, 1.0).run, args=(x(),))
    thread.start()
    assert again.running.acquire(timeout=120)
    assert page.overdue_s(time.monotonic_ns() + 10**10) > 0.0, "slots of threads that ended are free again"
    again.close()
    thread.join()


def test_another_process_is_seen_when_it_answers_nothing() -> None:
    page = Page.create()
    code = (
        "import ctypes, sys, time\n"
        "from edgekit_agent.progress import Page, Watched\n"
        "class Stuck:\n"
        "    thread_safe = True\n"
        "    def run(self, inputs): ctypes.PyDLL(None).sleep(60)\n"  # holds the interpreter's lock
        "Watched(Stuck(), Page.attach(int(sys.argv[1])), 1.0, 0.01, 0.05).run({})\n"
    )
    command = [sys.executable, "-c", code, str(page.descriptor)]
    with subprocess.Popen(command, pass_fds=[page.descriptor]) as child:
        deadline = time.monotonic() + 30
        while not page.overdue_s(time.monotonic_ns()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert page.overdue_s(time.monotonic_ns()) > 0.0
        child.kill()


def test_what_is_no_page() -> None:
    descriptor = memfd.create("short", b"x")
    with pytest.raises(FormatError, match="another size"):
        Page.attach(descriptor)
    os.close(descriptor)
