"""Figures of the board, from files as Linux writes them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from edgekit_agent import board

STAT = """\
cpu  100 20 30 1000 50 6 4 10 7 8
cpu0 50 10 15 500 25 3 2 5 3 4
cpu1 50 10 15 500 25 3 2 5 4 4
intr 1 2 3
"""
MEMINFO = "MemTotal:        1024000 kB\nMemFree:          100000 kB\nMemAvailable:     512000 kB\n"


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_small_board(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/stat": STAT,
            "proc/meminfo": MEMINFO,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "51000\n",
            "sys/class/thermal/thermal_zone2/type": "broken\n",
            "sys/class/thermal/thermal_zone2/temp": "\n",
        },
    )
    found = board.read(tmp_path, root)
    # user + nice + system + irq + softirq + steal; guest time is in user already
    assert found.cores == 2
    assert found.cpu_busy_s == pytest.approx(170 / os.sysconf("SC_CLK_TCK"))
    assert (found.memory_bytes, found.memory_available_bytes) == (1024000 * 1024, 512000 * 1024)
    assert found.temperatures == {"cpu-thermal": 51.0}
    assert 0 < found.disk_free_bytes <= found.disk_bytes


def test_what_cannot_be_read_is_zero(tmp_path: Path) -> None:
    found = board.read(tmp_path / "nowhere", tmp_path)
    assert found == board.Board()


@pytest.mark.parametrize(
    ("group", "left"),
    [
        (
            {
                "sys/fs/cgroup/a/b/memory.max": "104857600\n",
                "sys/fs/cgroup/a/b/memory.current": "94371840\n",
                "sys/fs/cgroup/a/b/memory.stat": "anon 5\ninactive_file 2097152\n",
            },
            (100, 12),
        ),
        ({"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "5\n"}, (1000, 500)),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "104857600\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "52428800\n",
            },
            (100, 50),
        ),
    ],
    ids=["version 2", "no limit", "version 1"],
)
def test_the_container_counts(tmp_path: Path, group: dict[str, str], left: tuple[int, int]) -> None:
    root = make(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n", **group})
    total, available = board.memory(root)
    assert (total >> 20, available >> 20) == left


def test_processes_and_threads() -> None:
    me = os.getpid()
    before, deadline = board.cpu_s(me), time.monotonic() + 20
    burnt = threading.Event()

    def burn() -> None:
        while not burnt.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    thread.start()
    main_before = board.cpu_s(me, me)
    while board.cpu_s(me) < before + 0.3 and time.monotonic() < deadline:
        time.sleep(0.05)
    burnt.set()
    thread.join()
    grown = board.cpu_s(me) - before
    assert grown >= 0.3
    assert board.cpu_s(me, me) - main_before < grown / 2, "another thread's work is not the main thread's"
    assert board.resident_mib(me) > 5
    assert board.resident_mib(2**22 + 1) == board.cpu_s(2**22 + 1) == 0.0


def test_the_meter_reads_once_a_second() -> None:
    meter = board.Meter()
    first = meter.read()
    assert first.cores > 0 and meter.read() is first
