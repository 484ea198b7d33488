"""The CPUs that can be emulated, and the files that make a folder look like a board with one of them.

Engines choose their kernels by what these files and the CPU itself say. Without them onnxruntime reads the
PC's cache topology in /sys, takes it for the board's, and dies when it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import host
from edgekit.errors import ProfileError
from edgekit.profile import Profile

_ARMV8 = "fp asimd evtstrm crc32 cpuid"
_ARMV8_2 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
_ARMV7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"
_HASWELL = (
    "fpu de pse tsc msr pae cx8 cmov clflush mmx fxsr sse sse2 ht syscall nx lm constant_tsc pni pclmulqdq "
    "ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm bmi1 avx2 bmi2 erms"
)


@dataclass(frozen=True)
class Cpu:
    """`name` is QEMU's."""

    name: str
    architecture: str
    part: str
    """`CPU part` of /proc/cpuinfo on ARM, as the main ID register has it; the model name on x86."""
    features: str


CPUS = {
    cpu.name: cpu
    for cpu in (
        Cpu("cortex-a53", "aarch64", "0xd03", _ARMV8),
        Cpu("cortex-a57", "aarch64", "0xd07", _ARMV8),
        Cpu("cortex-a72", "aarch64", "0xd08", _ARMV8),
        Cpu("cortex-a76", "aarch64", "0xd0b", _ARMV8_2),
        Cpu("neoverse-n1", "aarch64", "0xd0c", _ARMV8_2),
        # QEMU's own invention, which no board has. Its matrix unit (SME) was wrong in QEMU 7.2: a keyword
        # spotter on LiteRT answers 8 % right. Kept as the bad silicon that gates must catch.
        Cpu("max", "aarch64", "0x051", f"{_ARMV8_2} sve i8mm bf16"),
        Cpu("cortex-a7", "armv7l", "0xc07", _ARMV7),
        Cpu("cortex-a15", "armv7l", "0xc0f", _ARMV7),
        Cpu("Haswell", "x86_64", "Intel Core Processor (Haswell)", _HASWELL),
    )
}


def cpu_of(profile: Profile) -> Cpu:
    """The CPU that stands for the profile's. Raises ProfileError for a name that is not in `CPUS`."""
    name, architecture = profile.hardware.emulate, profile.hardware.architecture
    fitting = [cpu.name for cpu in CPUS.values() if cpu.architecture == architecture]
    if name not in fitting:
        known = ", ".join(fitting) or f"none for {architecture}"
        raise ProfileError(f"{profile.name}: hardware.emulate cannot be {name!r}", f"known: {known}")
    return CPUS[name]


def board(profile: Profile) -> dict[str, str]:
    """Path to content of the files that tell a program on which board it runs. Pure."""
    hardware, cpu = profile.hardware, cpu_of(profile)
    cores = range(hardware.cores)
    every = f"0-{hardware.cores - 1}"
    files = {
        "proc/cpuinfo": "".join(_cpuinfo(profile, cpu, core) for core in cores),
        "proc/meminfo": f"MemTotal:       {hardware.ram_mib * 1024} kB\n",
    }
    if hardware.detect:
        files["proc/device-tree/model"] = f"{hardware.detect[0]}\0"
    for name in ("possible", "present", "online"):
        files[f"sys/devices/system/cpu/{name}"] = f"{every}\n"
    khz = round((hardware.clock_ghz or 1.0) * 1e6)
    for core in cores:
        place = f"sys/devices/system/cpu/cpu{core}"
        files[f"{place}/cpufreq/cpuinfo_max_freq"] = f"{khz}\n"
        files[f"{place}/cpufreq/cpuinfo_min_freq"] = f"{khz // 2}\n"
        files[f"{place}/topology/physical_package_id"] = "0\n"
        files[f"{place}/topology/core_id"] = f"{core}\n"
        for name in ("core_siblings_list", "package_cpus_list", "cluster_cpus_list"):
            files[f"{place}/topology/{name}"] = f"{every}\n"
    return files


def _cpuinfo(profile: Profile, cpu: Cpu, core: int) -> str:
    if cpu.architecture == "x86_64":
        return (
            f"processor\t: {core}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 60\n"
            f"model name\t: {cpu.part}\nflags\t\t: {cpu.features}\n\n"
        )
    # The board's own part where it has one: a Cortex-A78AE stays one, though a Neoverse stands for it.
    part = host.arm_part(profile.hardware.cpu) if cpu.architecture == "aarch64" else ""
    return (
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {cpu.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: {8 if cpu.architecture == 'aarch64' else 7}\nCPU variant\t: 0x0\n"
        f"CPU part\t: {part or cpu.part}\nCPU revision\t: 3\n\n"
    )
