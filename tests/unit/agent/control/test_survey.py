"""Which engines work here is found out in a child process."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgekit_agent import device, launch
from tests.support.serving import linear
from tests.support.started import started

BROKEN = {
    "boom": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
    "odd": "raise RuntimeError('built for another board')\n",
    "stuck": "import time\ntime.sleep(60)\n",
}


def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers' engines that do not get as far as saying their version."""
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    doors = [f"{name} = broken_{name}:RUNTIME" for name in BROKEN]
    (info / "entry_points.txt").write_text("\n".join(["[edgekit.runtimes]", *doors]) + "\n")
    for name, text in BROKEN.items():
        (folder / f"broken_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_only_what_is_wanted_and_what_is_there() -> None:
    assert launch.survey([]) == {}
    assert launch.survey(["reference", "nobody"]).keys() == {"reference"}
    assert device.engines({"reference"}).keys() == {"reference"}
    assert {"reference", "onnxruntime"} <= device.engines().keys()


def test_an_engine_that_ends_the_process_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in(tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert launch.survey(["boom", "odd", "reference"]).keys() == {"reference"}
    assert "engine boom is left out: the process that looked for it was killed by SIGILL" in caplog.text


def test_an_engine_that_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plug_in(tmp_path, monkeypatch)
    assert launch.survey(["stuck", "reference"], timeout_s=5.0).keys() == {"reference"}
    assert "engine stuck is left out" in caplog.text and "within 5 s" in caplog.text


def test_the_supervisor_maps_no_engine_and_no_numpy(tmp_path: Path) -> None:
    with started(tmp_path, linear()) as agent:
        found = {mapped.path for mapped in agent.supervisor.memory_maps()}
        assert not [path for path in found if "numpy" in path or "onnxruntime" in path]
        assert any("numpy" in mapped.path for mapped in agent.serving.memory_maps())
