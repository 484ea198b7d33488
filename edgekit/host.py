"""This machine: what /proc and /sys say of CPU, instruction set, memory and board; private memory.

Every path is relative to a root folder, so that a folder can stand for a board.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE = 4

# fmt: off
ISA_FEATURES = frozenset({
    # x86, as in the flags line of /proc/cpuinfo
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq",
    "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16",
    # ARM, as in its Features line
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "svei8mm",
    "svebf16", "sme",
})
# fmt: on
"""The CPU features that change an inference engine's choice of kernels, hence answers and speed."""

_ARM_PARTS = {
    "0xc07": "Cortex-A7",
    "0xc0f": "Cortex-A15",
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
}
"""`CPU part` of /proc/cpuinfo for `CPU implementer` 0x41 (Arm): main ID register, Arm's manuals."""


@dataclass(frozen=True)
class Host:
    architecture: str
    """What this process may load: x86_64, aarch64, armv7l (also for a 32-bit system on a 64-bit kernel)."""
    isa: tuple[str, ...]
    """Those of ISA_FEATURES that the CPU has, sorted."""
    cpu: str
    cores: int
    """Logical processors."""
    ram_mib: int
    storage_mib: int
    """Size of the file system at the root."""
    board: str
    """Device tree or DMI model name; empty when there is none (a virtual machine or container)."""


def read(root: Path = Path("/"), machine: str | None = None) -> Host:
    """Describe the machine whose /proc and /sys lie under `root`; `machine` overrides `uname -m`.

    Never fails: what cannot be read is empty or 0.
    """
    lines = _text(root / "proc/cpuinfo").splitlines()
    cpuinfo = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    first = dict(reversed(cpuinfo))
    kernel = machine or os.uname().machine
    architecture = _user_space(kernel, pointer_bits=64 if machine else 8 * struct.calcsize("P"))
    words = set(first.get("flags", first.get("Features", "")).split())
    if architecture == "armv7l" and "asimd" in words:
        words.add("neon")  # a 64-bit kernel uses the new name of the same unit
    return Host(
        architecture=architecture,
        isa=tuple(sorted(words & ISA_FEATURES)),
        cpu=_cpu(first),
        cores=sum(key == "processor" for key, _ in cpuinfo),
        ram_mib=_memory(_text(root / "proc/meminfo")),
        storage_mib=_storage(root),
        board=_board(root, first),
    )


def saturates(host: Host) -> bool:
    """Whether fast int8 kernels lose digits here: x86 without VNNI adds u8*s8 products in 16 bits.

    Measured on an AMD EPYC with AVX2: the keyword spotter's s8*s8 and u8*s8 files both score 0.09 there
    instead of 0.93. 7-bit weights (reduce_range) are safe.
    """
    return host.architecture == "x86_64" and not {"avx512_vnni", "avx_vnni"} & set(host.isa)


def arm_part(cpu: str) -> str:
    """`CPU part` of /proc/cpuinfo for one of Arm's names, e.g. "Cortex-A72"; empty for others."""
    return next((part for part, name in _ARM_PARTS.items() if name == cpu), "")


def keep_private() -> None:
    """No core dump, no debugger, for a process whose memory holds keys or plaintext (Linux).

    Both are needed: a core_pattern that pipes to a program ignores the limit. Afterwards /proc/self
    belongs to root, so what an ordinary user must write there is written before.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_DUMPABLE")


def unmet(
    architecture: str, isa: Iterable[str], have_architecture: str, have_isa: Iterable[str]
) -> list[str]:
    """What of the wanted architecture and CPU features is absent; empty when all is there.

    "any" is every architecture; "a|b" is met by either feature.
    """
    have = set(have_isa)
    wrong = architecture not in ("any", have_architecture)
    absent = [f"{feature} missing" for feature in isa if have.isdisjoint(feature.split("|"))]
    return [f"needs {architecture}, this is {have_architecture}"] * wrong + absent


def _user_space(machine: str, pointer_bits: int) -> str:
    names = {"arm64": "aarch64", "AMD64": "x86_64", "amd64": "x86_64", "armv8l": "armv7l"}
    name = names.get(machine, machine)
    return "armv7l" if name == "aarch64" and pointer_bits == 32 else name


def _cpu(first: dict[str, str]) -> str:
    if "model name" in first:
        return re.sub(r"\s+", " ", first["model name"])
    part = first.get("CPU part", "")
    return _ARM_PARTS.get(part, f"ARM part {part}" if part else "")


def _memory(meminfo: str) -> int:
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(total[1]) // 1024 if total else 0


def _storage(root: Path) -> int:
    try:
        status = os.statvfs(root)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize // (1 << 20)


def _board(root: Path, first: dict[str, str]) -> str:
    model = _text(root / "proc/device-tree/model") or first.get("Model", "")
    if model:
        return model.strip("\0 \n")
    if (root / "system/build.prop").exists():
        product = re.search(
            r"^ro\.product\.(?:\w+\.)?model=(.+)$", _text(root / "system/build.prop"), re.MULTILINE
        )
        return f"Android {product[1].strip()}" if product else "Android"
    return _text(root / "sys/class/dmi/id/product_name").strip()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
