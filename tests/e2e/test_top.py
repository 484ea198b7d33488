"""`edgekit-agent top` beside a serving process that answers requests."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from pathlib import Path

import pytest

from edgekit.errors import InputError, SystemFault
from edgekit_agent import scrape
from tests.support.agent_process import AGENT
from tests.support.serving import linear, stand


def test_once_as_json_and_as_text(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        assert linear(1.0).into(made.serving).ok
        stop = threading.Event()

        def ask() -> None:
            connection = http.client.HTTPConnection(made.address, timeout=30)
            tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [0] * 8}
            while not stop.is_set():
                connection.request("POST", "/v2/models/kws/infer", json.dumps({"inputs": [tensor]}))
                connection.getresponse().read()
            connection.close()

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for where in (["--url", f"http://{made.address}"], ["--unix", str(made.path)]):
                command = [AGENT, "top", *where, "--once", "--json", "--interval", "0.5"]
                found = json.loads(subprocess.check_output(command, timeout=60))
                (model,) = found["models"]
                assert found["release"] == "kws:1" and model["serving"] is True
                assert model["latency"]["per_s"] > 1 and model["latency"]["p50_ms"] > 0
                assert model["samples_per_s"] == pytest.approx(2 * model["latency"]["per_s"], rel=0.2)
                assert model["protocols"]["oip-http"]["per_s"] > 1
                assert found["memory_available_mib"] > 0 and found["connections"] >= 1
            command = [AGENT, "top", "--unix", str(made.path), "--once", "--interval", "0.5"]
            shown = subprocess.check_output(command, timeout=60, text=True)
            assert shown.startswith("release  kws:1") and "oip-http" in shown
        finally:
            stop.set()
            thread.join()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SystemFault, match="no answer"):
        scrape.fetch(unix=tmp_path / "nobody.sock")
    with pytest.raises(InputError, match="not an http address"):
        scrape.fetch("ftp://x")
    done = subprocess.run(
        [AGENT, "top", "--unix", str(tmp_path / "nobody.sock"), "--once"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: no answer from")
