"""An engine that misbehaves, installed as a stranger's engine would be: found by its entry point.

Options choose how: `mode` names what `load` or `run` does; a run does it when the first value of `x` is 13.
Answers are those of `x * gain`, or `x @ weights.bin` (4 rows) where that file is given.
"""

from __future__ import annotations

from pathlib import Path

NAME = "stranger"

CODE = """
import ctypes, os, signal, threading, time
import numpy as np

HOARD = []

def burn():
    while True:
        np.ones(1 << 16).sum()

class Session:
    thread_safe = True
    def __init__(self, mode, weights):
        self.mode, self.weights = mode.removeprefix("slowly-"), weights
        self.slow = mode.startswith("slowly-")
    def run(self, inputs):
        x = inputs["x"]
        if self.slow: time.sleep(0.002)
        if x[0, 0] == 13:
            self.misbehave(x)
        y = x * 1.0 if self.weights is None else x @ self.weights
        return {"y": y * np.float32("nan") if self.mode == "nan" and x[0, 0] == 13 else y}
    def misbehave(self, x):
        if self.mode == "run-crash": ctypes.string_at(0)
        if self.mode == "run-raise": raise ZeroDivisionError("thirteen")
        if self.mode == "slow": time.sleep(float(x[0, 1]))
        if self.mode == "run-hang": time.sleep(3600)
        if self.mode == "run-hang-gil": ctypes.PyDLL(None).sleep(3600)
        if self.mode == "run-spin":
            while True: pass
        if self.mode == "spin-after": threading.Thread(target=burn, daemon=True).start()
        if self.mode == "leak": HOARD.append(np.ones(int(x[0, 1]) << 17))
    def coverage(self): return {}
    def close(self): pass

class Engine:
    name = "stranger"
    def version(self): return "1.0"
    def load(self, files, options):
        mode = options["mode"]
        if mode == "crash": ctypes.string_at(0)
        if mode == "exit": os._exit(7)
        if mode == "hang": time.sleep(3600)
        if mode == "eat": self.food = [np.ones(1 << 24) for _ in range(100)]
        if mode == "raise": raise ZeroDivisionError("no reason")
        if mode == "hang-in-serving" and "worker" in open("/proc/self/cmdline").read(): time.sleep(3600)
        if mode == "crash-in-serving" and "worker" in open("/proc/self/cmdline").read(): ctypes.string_at(0)
        if mode.startswith("killed") and "worker" in open("/proc/self/cmdline").read():
            mark = __file__ + ".killed"
            if mode == "killed-always" or not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        weights = files.get("weights.bin")
        return Session(mode, None if weights is None else np.frombuffer(weights, "<f4").reshape(4, -1))

RUNTIME = Engine()
"""
"""`leak` keeps as many MiB as the second value of `x` says. `*-in-serving`, `killed-once`, `killed-always`:
not in a probe.
`slowly-*`: every run takes 2 ms, so that it gets a thread."""


def install(folder: Path) -> Path:
    """A folder for PYTHONPATH that holds the engine as an installed distribution."""
    package = folder / NAME
    info = package / "stranger_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "stranger_engine.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.runtimes]\nstranger = stranger_engine:RUNTIME\n")
    return package
