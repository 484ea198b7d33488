"""A started agent says when requests are no longer like the rows that its bundle was certified with."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from edgekit.build import reference
from edgekit.runtimes import Array
from edgekit_agent import scrape
from tests.support.agent_process import AGENT
from tests.support.serving import linear
from tests.support.started import Started, started

GENERATOR = np.random.default_rng(17)
WITHIN_S = 60.0


def rows(count: int, shift: tuple[float, ...] = (0, 0, 0, 0)) -> Array:
    return (GENERATOR.standard_normal((count, 4)) + shift).astype(np.float32)


class Client:
    def __init__(self, agent: Started) -> None:
        self._agent = agent
        self._connection = http.client.HTTPConnection(agent.address, timeout=30)
        self.asked = 0

    def close(self) -> None:
        self._connection.close()

    def ask(self, sent: Array) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": list(sent.shape), "data": sent.ravel().tolist()}
        self._connection.request("POST", "/v2/models/kws/infer", json.dumps({"inputs": [tensor]}))
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        self.asked += 1

    def until(
        self, done: Callable[[scrape.Reading], bool], shift: tuple[float, ...] = (0, 0, 0, 0)
    ) -> scrape.Reading:
        """Send rows until the metrics are as wanted."""
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            self.ask(rows(64, shift))
            if self.asked % 8 == 0 and done(found := self.read()):
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {WITHIN_S:g} s: {self.drift()}")

    def read(self) -> scrape.Reading:
        return scrape.fetch(f"http://{self._agent.address}")

    def drift(self) -> tuple[float | None, float | None]:
        found = self.read()
        return found.most("edgekit_input_drift_psi"), found.most("edgekit_output_drift_psi")


def samples(at_least: float) -> Callable[[scrape.Reading], bool]:
    return lambda found: found.total("edgekit_drift_samples_total") >= at_least


def test_drift_of_inputs_and_answers_is_seen_and_forgotten(tmp_path: Path) -> None:
    known = rows(2000)
    made = reference.of({"x": known}, {"y": known}, classifies=True)
    with started(tmp_path, linear().changed(reference=made)) as agent, closing(Client(agent)) as client:
        client.ask(rows(8))
        assert client.drift() == (None, None)  # eight rows prove nothing
        client.until(samples(1200))
        inputs, answers = client.drift()
        assert inputs is not None and inputs < 0.1
        assert answers is not None and answers < 0.1

        # All columns by two standard deviations: the largest is the same as before.
        client.until(lambda found: (found.most("edgekit_input_drift_psi") or 0) > 0.25, (2, 2, 2, 2))
        before = client.read().total("edgekit_drift_samples_total")
        client.until(samples(before + 1200), (2, 2, 2, 2))
        inputs, answers = client.drift()
        assert inputs is not None and inputs > 1
        assert answers is not None and answers < 0.1

        # One column: the answers change as well.
        client.until(lambda found: (found.most("edgekit_output_drift_psi") or 0) > 0.25, (0, 2, 0, 0))
        before = client.read().total("edgekit_drift_samples_total")
        found = client.until(samples(before + 1200), (0, 2, 0, 0))
        assert list(found.of("edgekit_input_drift_column").values()) == [1]
        top = subprocess.check_output(
            [AGENT, "top", "--url", f"http://{agent.address}", "--once", "--json", "--interval", "0.5"],
            timeout=60,
        )
        (model,) = json.loads(top)["models"]
        assert model["input_psi"] > 0.25 and model["output_psi"] > 0.25

        before = found.total("edgekit_drift_samples_total")
        client.until(samples(before + 1200))
        assert max(psi or 1 for psi in client.drift()) < 0.1
        assert agent.complaints() == [] and agent.same()


def test_a_bundle_without_a_reference_serves_as_before(tmp_path: Path) -> None:
    with started(tmp_path, linear()) as agent, closing(Client(agent)) as client:
        for _ in range(20):
            client.ask(rows(64))
        found = client.read()
        assert found.total("edgekit_requests_total") == 20
        assert not any("drift" in name for name, _ in found.samples)
        assert agent.complaints() == []
