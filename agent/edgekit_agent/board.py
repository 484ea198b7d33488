"""The board this runs on: processor, memory, disk, temperature, as /proc and /sys tell it. Linux."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_MAX_ZONES = 16
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Board:
    """One reading. What this board cannot tell is 0 or empty."""

    cores: int = 0
    cpu_busy_s: float = 0.0
    """Of all cores together, since the board was started."""
    cpu_share: float = 0.0
    """Share of all cores that was busy since the reading before; 0 in the first one."""
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    """What programs may still take, within the container's limit too."""
    disk_bytes: int = 0
    disk_free_bytes: int = 0
    temperatures: dict[str, float] = field(default_factory=dict)
    """Thermal zone to degrees Celsius; the hottest of several with one name."""


def read(folder: Path = Path("/"), root: Path = Path("/")) -> Board:
    """A reading of the machine whose /proc and /sys lie under `root`, and of the disk that holds `folder`."""
    cores, busy_s = _cpu(_text(root / "proc/stat"))
    total, available = memory(root)
    disk, free = _disk(folder)
    return Board(
        cores=cores,
        cpu_busy_s=busy_s,
        memory_bytes=total,
        memory_available_bytes=available,
        disk_bytes=disk,
        disk_free_bytes=free,
        temperatures=_temperatures(root / "sys/class/thermal"),
    )


class Meter:
    """Reads at most once a second: scrapers may ask as often as they like. Any thread may."""

    def __init__(self) -> None:
        self._at, self._last = 0.0, Board()
        self._lock = threading.Lock()

    def read(self) -> Board:
        with self._lock:
            return self._read()

    def _read(self) -> Board:
        now = time.monotonic()
        if now - self._at < 1.0 and self._at:
            return self._last
        found, before = read(), self._last
        if before.cores:
            busy = (found.cpu_busy_s - before.cpu_busy_s) / ((now - self._at) * max(1, found.cores))
            found = dataclasses.replace(found, cpu_share=min(1.0, max(0.0, busy)))
        self._at, self._last = now, found
        return found


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, available) bytes: the machine's or the control group's, whichever is less."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE))
    total, available = (int(found.get(key, 0)) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, left = _group(root)
    if 0 < limit < total:
        return limit, min(available, left)
    return total, available


def available_mib() -> float:
    """Memory that this process and its children may still take, in MiB."""
    return memory()[1] / (1 << 20)


def resident_mib(process: int) -> float:
    """Resident memory of a process in MiB; 0 when there is no such process."""
    fields = _text(Path(f"/proc/{process}/statm")).split()
    return int(fields[1]) * _PAGE_BYTES / (1 << 20) if len(fields) > 1 else 0.0


def cpu_s(process: int, thread: int = 0) -> float:
    """Processor seconds that a process, or one thread of it, has used; 0 when there is no such process."""
    path = f"/proc/{process}/task/{thread}/stat" if thread else f"/proc/{process}/stat"
    fields = _text(Path(path)).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0


def _cpu(stat: str) -> tuple[int, float]:
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    total = next((line for line in lines if line[0] == "cpu"), [])
    values = [int(value) for value in total[1:9]]  # user nice system idle iowait irq softirq steal
    busy = sum(values) - sum(values[3:5])
    return max(0, len(lines) - 1), busy / _TICKS


def _group(root: Path) -> tuple[int, int]:
    """(limit, what is left of it) of our control group, version 2 or 1; (0, 0): no limit.

    Cache that can be dropped counts as left.
    """
    path = re.search(r"^0::(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    base = root / "sys/fs/cgroup"
    places = [(base / (path[1].strip("/") if path else ""), "memory.max", "memory.current"),
              (base, "memory.max", "memory.current"),
              (base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")]  # fmt: skip
    for folder, limit_name, used_name in places:
        limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
        if limit.isdigit() and used.isdigit():
            cache = re.search(
                r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE
            )
            return int(limit), max(0, int(limit) - int(used) + int(cache[1] if cache else 0))
    return 0, 0


def _disk(folder: Path) -> tuple[int, int]:
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _temperatures(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        zones = sorted(folder.glob("thermal_zone*"))[:_MAX_ZONES]
    except OSError:
        return {}
    for zone in zones:
        text = _text(zone / "temp").strip()
        name = _text(zone / "type").strip()[:64] or zone.name
        if re.fullmatch(r"-?\d{1,7}", text):  # thousandths of a degree
            found[name] = max(found.get(name, -273.15), int(text) / 1000)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
