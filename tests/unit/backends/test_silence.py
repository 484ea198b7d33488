from __future__ import annotations

import sys
import threading

import pytest

from edgekit.backends._silence import silenced


def test_overlapping_threads_leave_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A enters, B enters, A leaves, B leaves: what each prints inside is dropped, all else is printed."""
    real, steps = sys.stdout, [threading.Event() for _ in range(3)]

    def first() -> None:
        with silenced():
            print("noise of A")
            steps[0].set()
            assert steps[1].wait(10)
        print("A is done")
        steps[2].set()

    def second() -> None:
        assert steps[0].wait(10)
        with silenced():
            print("noise of B")
            steps[1].set()
            assert steps[2].wait(10)
            print("noise of B")

    threads = [threading.Thread(target=one) for one in (first, second)]
    with silenced(), silenced():
        print("noise")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    print("end")
    assert sys.stdout is real
    assert capsys.readouterr().out == "A is done\nend\n"


def test_an_error_inside_ends_the_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), silenced():
        raise ValueError("broken")
    print("heard")
    assert capsys.readouterr().out == "heard\n"
