"""Folders that look like boards to `edgekit.host`: what /proc says on each, shortened to what is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_A53 = "fp asimd evtstrm crc32 cpuid"
_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_ARMV7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32"
_SKYLAKE = "fpu sse sse2 ssse3 sse4_1 sse4_2 fma avx f16c avx2 bmi2"
_TIGER_LAKE = f"{_SKYLAKE} avx512f avx512dq avx512bw avx512vl avx512_vnni"
_RAPTOR_LAKE = f"{_SKYLAKE} avx_vnni"


@dataclass(frozen=True)
class Board:
    machine: str
    model: str
    features: str
    cpu: str
    cores: int
    ram_mib: int
    profile: str
    part: str = ""
    android: bool = False


_ORIN = f"{_A76} uscat ilrcpc flagm"

_ARM = [
    # machine, model, features, cpu, part, cores, MiB, profile
    ("aarch64", "NVIDIA Jetson Orin Nano Developer Kit", _ORIN, "Cortex-A78AE", "0xd42", 6, 7620, "jetson"),
    ("aarch64", "NVIDIA Jetson AGX Orin Developer Kit", _ORIN, "Cortex-A78AE", "0xd42", 12, 30536, "jetson"),
    ("aarch64", "Raspberry Pi 5 Model B Rev 1.0", _A76, "Cortex-A76", "0xd0b", 4, 4045, "raspberry-pi-5"),
    ("aarch64", "Raspberry Pi 4 Model B Rev 1.4", _A53, "Cortex-A72", "0xd08", 4, 1849, "raspberry-pi-4"),
    ("armv7l", "Raspberry Pi 3 Model B Rev 1.2", _ARMV7, "Cortex-A53", "0xd03", 4, 921, "raspberry-pi-3"),
    # The same board with the 64-bit system, and one that no profile names.
    ("aarch64", "Raspberry Pi 3 Model B Plus Rev 1.3", _A53, "Cortex-A53", "0xd03", 4, 921, "generic-cpu"),
    ("aarch64", "Radxa ROCK 5B", _A76, "Cortex-A76", "0xd0b", 8, 15900, "generic-cpu"),
    ("aarch64", "Android Pixel 6", _A76, "Cortex-A76", "0xd0b", 8, 7700, "android-arm64"),
]
_X86 = [
    ("NUC11PAHi5", _TIGER_LAKE, "11th Gen Intel(R) Core(TM) i5-1135G7 @ 2.40GHz", 8, 15743, "intel-nuc"),
    ("NUC13ANHi5", _RAPTOR_LAKE, "13th Gen Intel(R) Core(TM) i5-1340P", 16, 31744, "intel-nuc"),
    ("NUC8i5BEH", _SKYLAKE, "Intel(R) Core(TM) i5-8259U CPU @ 2.30GHz", 8, 15872, "x86-haswell"),
    ("", "fpu sse sse2 ssse3 sse4_1", "Intel(R) Core(TM)2 Duo CPU E8400", 2, 3900, "generic-cpu"),
]

BOARDS = {
    model: Board(
        machine, model, features, cpu, cores, ram, profile, part, android=model.startswith("Android")
    )
    for machine, model, features, cpu, part, cores, ram, profile in _ARM
} | {
    model or "old PC": Board("x86_64", model, features, cpu, cores, ram, profile)
    for model, features, cpu, cores, ram, profile in _X86
}


def make(board: Board, root: Path) -> Path:
    """Write the board's /proc and /sys below `root`."""
    lines = [f"flags\t\t: {board.features}", f"model name\t: {board.cpu.replace(' @', '   @')}"]
    if board.part:
        lines = [f"Features\t: {board.features}", "CPU implementer\t: 0x41", f"CPU part\t: {board.part}"]
    text = "".join(
        f"processor\t: {i}\n" + "".join(f"{line}\n" for line in lines) + "\n" for i in range(board.cores)
    )
    _write(root / "proc/cpuinfo", text)
    _write(
        root / "proc/meminfo", f"MemTotal:       {board.ram_mib * 1024 + 100} kB\nMemFree:        1024 kB\n"
    )
    if board.android:
        _write(
            root / "system/build.prop",
            f"ro.build.id=X\nro.product.system.model={board.model.split(' ', 1)[1]}\n",
        )
    elif board.part:
        _write(root / "proc/device-tree/model", f"{board.model}\0")
    elif board.model:
        _write(root / "sys/class/dmi/id/product_name", f"{board.model}\n")
    return root


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
