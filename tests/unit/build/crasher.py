"""An engine that goes wrong in the way its recipe asks for, installed for one test as a plug-in."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

from edgekit.backends import Backend, Calibration, Recipe, SourceModel
from edgekit.profile import CalibrationPolicy, Target


class Engine:
    runtime = "crasher"

    def tools(self) -> dict[str, str]:
        return {}

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        return ()

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        how = recipe.options["how"]
        if how == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hang":
            time.sleep(600)
        if how == "raise":
            raise ValueError("first line\nsecond line")
        if how == "exit":
            sys.stderr.write("out of luck\n")
            os._exit(3)
        if how == "silent":
            os._exit(0)
        return {"model.bin": model.onnx, "deep/er.bin": b"".join(a.tobytes() for a in calibration.values())}


BACKEND: Backend = Engine()
