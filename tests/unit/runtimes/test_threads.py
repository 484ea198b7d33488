"""The helper itself: a session that keeps the GIL must be told from one that does not."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from edgekit.runtimes import Array
from tests.unit.runtimes.threads import runs_beside_python


class Sleeper:
    thread_safe = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._library.usleep(300_000)
        return {}

    def coverage(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def test_the_helper_sees_the_difference() -> None:
    assert runs_beside_python(Sleeper(ctypes.CDLL(None)), {})  # releases the GIL around the call
    assert not runs_beside_python(Sleeper(ctypes.PyDLL(None)), {})  # keeps it
