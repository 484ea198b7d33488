"""What the agent's processes do first: leave no core; children also die with the supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
from pathlib import Path

from edgekit.host import keep_private

_PR_SET_PDEATHSIG = 1
_PR_SET_THP_DISABLE = 41
_M_ARENA_MAX = -8
_LIBC = ctypes.CDLL(None, use_errno=True)


def harden(parent: int) -> None:
    """Tie this process to `parent` (a process id) and keep its memory, which holds plaintext, private.

    Exits with status 1 when the parent is already gone. The kernel sends the death signal when the
    *thread* that forked us ends, which is why launch.py forks from a thread that stays.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, who then stops us
    keep_private()
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)


def limit_memory(mib: int) -> None:
    """Allocations beyond `mib` MiB of private memory fail (RLIMIT_DATA; thread stacks count in full)."""
    size = mib * (1 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def limit_growth(mib: float) -> None:
    """Allocations fail once private memory has grown by `mib` MiB from what it is now; infinite: never.

    Counted from now, because what is only reserved (stacks of threads) counts in RLIMIT_DATA too.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    size = resource.RLIM_INFINITY
    if math.isfinite(mib):
        size = int(_status_mib("VmData:") + mib) * (1 << 20)
    if hard != resource.RLIM_INFINITY and (size == resource.RLIM_INFINITY or size > hard):
        size = hard
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def first_to_die(score: int = 1000) -> None:
    """Ask the kernel to choose this process when memory runs out: 1000 before all others. Before `harden`."""
    Path("/proc/self/oom_score_adj").write_text(str(score), encoding="ascii")


def rss_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def peak_rss_mib() -> float:
    """High-water mark of this program. Not `ru_maxrss`: that remembers the parent's memory across exec."""
    return _status_mib("VmHWM:")


def share_heap() -> None:
    """Let all threads allocate from one heap (glibc gives each its own). Call before threads start.

    What one thread has freed serves the others: a convolutional network that was loaded in one thread and
    runs in another took 159 MiB with a heap each and 89 with one, at the same speed. Fixed thresholds for
    mmap would save a little more and cost 3 ms of page faults in each run.
    """
    options = getattr(_LIBC, "mallopt", None)  # musl has none
    if options is not None:
        options(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Return freed heap to the system (glibc keeps it otherwise; measured 53-73 MiB after a swap)."""
    trim = getattr(_LIBC, "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


def allow_large_pages(allowed: bool) -> None:
    """Whether the kernel may put this process's memory into large pages (2 MiB on most machines).

    Those there are stay. Under load they are worth having (see launch.py). Without load the kernel's
    khugepaged makes whole pages out of what `give_back_memory` has left: 10 of 20 MiB given back were taken
    again within a minute.
    """
    with contextlib.suppress(OSError):  # a kernel without large pages
        _prctl(_PR_SET_THP_DISABLE, int(not allowed))


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return 0.0


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
