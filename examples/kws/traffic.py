"""Steady requests to every agent over its Unix socket, with real samples and known labels."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIRST_ROW, LAST_ROW = 200, 1000
PAUSE_S = 0.05


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@dataclass
class Counts:
    requests: int = 0
    failed: int = 0
    right: int = 0
    latency_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Traffic:
    """One client thread per agent, each on one keep-alive connection, which it may not lose."""

    def __init__(self, sockets: dict[str, Path], data: Path, model: str) -> None:
        with np.load(data) as arrays:
            self.inputs, self.labels = arrays["x"], arrays["y"]
        self.path = f"/v2/models/{model}/infer"
        self.counts = {device: Counts() for device in sockets}
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self._client, args=(device, path), daemon=True)
            for device, path in sockets.items()
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def results(self) -> dict[str, dict[str, Any]]:
        """Per device: requests, failed, right, latency_p95_ms, the first errors."""
        return {
            device: {
                "requests": counts.requests,
                "failed": counts.failed,
                "right": counts.right,
                "latency_p95_ms": float(np.percentile(counts.latency_ms, 95)) if counts.latency_ms else 0.0,
                "errors": counts.errors[:3],
            }
            for device, counts in self.counts.items()
        }

    def _client(self, device: str, path: Path) -> None:
        counts, connection, row = self.counts[device], UnixConnection(path), FIRST_ROW
        tensor_name = ""
        while not self.stopping.wait(PAUSE_S):
            counts.requests += 1
            begin = time.perf_counter()
            try:
                tensor_name = tensor_name or self._input_name(connection)
                counts.right += int(self._infer(connection, tensor_name, row) == self.labels[row])
                counts.latency_ms.append((time.perf_counter() - begin) * 1e3)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
                counts.failed += 1
                counts.errors.append(f"{type(exc).__name__}: {exc}")
                connection.close()
            row = FIRST_ROW if row + 1 == LAST_ROW else row + 1
        connection.close()

    def _input_name(self, connection: UnixConnection) -> str:
        connection.request("GET", self.path.removesuffix("/infer"))
        return str(json.loads(connection.getresponse().read())["inputs"][0]["name"])

    def _infer(self, connection: UnixConnection, tensor_name: str, row: int) -> int:
        """The class of one stored (int8) sample; the agent applies the bundle's preprocessing."""
        sample = self.inputs[row]
        tensor = {
            "name": tensor_name,
            "datatype": "INT8",
            "shape": [1, *sample.shape],
            "data": sample.ravel().tolist(),
        }
        connection.request("POST", self.path, json.dumps({"inputs": [tensor]}))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status} {body[:200]!r}")
        return int(np.argmax(json.loads(body)["outputs"][0]["data"]))
