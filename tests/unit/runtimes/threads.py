"""Whether a session lets other Python threads run while it works."""

from __future__ import annotations

import threading
import time

from edgekit.runtimes import Array, Session


def runs_beside_python(session: Session, inputs: dict[str, Array]) -> bool:
    """True when this thread saw the run under way many times.

    A run that kept the GIL could be seen at most around its two ends, however loaded the machine is.
    """
    session.run(inputs)
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        session.run(inputs)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    sightings = 0
    while not done.is_set():
        sightings += 1
        time.sleep(0.001)
    thread.join()
    return sightings > 10
