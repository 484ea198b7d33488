"""No engine tells its maker that it is used: a device asks for no name that its owner did not configure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.namespaces import walled

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = """
import time
from edgekit import runtimes
from tests.unit.runtimes import kws
runtimes.get("litert").version()  # imports it
sessions = [kws.session(name) for name in ("onnxruntime", "openvino")]
end = time.monotonic() + 15
while time.monotonic() < end:
    for session in sessions:
        session.run({kws.INPUT: kws.data()[0][:1].astype("float32")})
    time.sleep(0.05)
"""
"""ONNX Runtime would report after ten seconds."""


def test_engines_do_not_report_to_their_makers(tmp_path: Path) -> None:
    asked, home = tmp_path / "asked", tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([*walled(asked), sys.executable, "-c", PROGRAM], env=environment, check=True)
    assert asked.read_text() == ""
    assert list(home.rglob("*")) == [], "something is kept there to be told later"
