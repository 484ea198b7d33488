"""Answers from the CPU of a device that is not here: `edgekit build --emulate`.

QEMU's user mode runs the engine's own wheel for the device's architecture, in a folder that looks like the
board, through the same `edgekit.runtimes` code that serves there. It proves answers, never speed.
"""

from edgekit.build.emulate._cpus import CPUS, board
from edgekit.build.emulate._emulation import Emulation
from edgekit.build.emulate._machine import Machine, needed, setup

__all__ = ["CPUS", "Emulation", "Machine", "board", "needed", "setup"]
