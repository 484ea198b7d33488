"""What the comparison with other servers reads, counts and concludes; the figures come from running it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.nets import Net
from benchmarks.peers import __main__ as peers
from benchmarks.peers import asks, tree

NET = Net("mlp", b"", (4,), 3)
VALUES = [1.5, -2.0, 3.25]


def http(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize(
    "document",
    [VALUES, [VALUES], {"y": [VALUES]}, {"outputs": [{"name": "y", "shape": [1, 3], "data": VALUES}]}],
)
def test_numbers_in_json(document: Any) -> None:
    answer = http(json.dumps(document).encode(), "Content-Type: application/json")
    np.testing.assert_array_equal(asks.numbers(NET, answer), VALUES)


def test_numbers_in_octets() -> None:
    raw = np.array(VALUES, "<f4").tobytes()
    text = b'{"outputs": [{"name": "y", "shape": [1, 3]}]}'
    answer = http(text + raw, f"Inference-Header-Content-Length: {len(text)}")
    np.testing.assert_array_equal(asks.numbers(NET, answer), VALUES)


def test_an_answer_without_the_numbers_is_none() -> None:
    assert len(asks.numbers(NET, http(b'{"y": [1, 2]}', "Content-Type: application/json"))) == 0


def test_the_whole_tree_counts(tmp_path: Path) -> None:
    """A child's work, too; and neither outlives the block."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    words = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])",
    ]
    with tree.started(words, tmp_path, {}) as found:
        while "done" not in found.log.read_text():
            found.alive()
        everyone = found.processes()
        assert len(everyone) == 2
        assert 0.3 <= found.cpu_s() < 10
        assert found.pss_mib() > 5
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in everyone)


def test_a_server_that_ended_is_reported(tmp_path: Path) -> None:
    with (
        tree.started([sys.executable, "-c", "raise SystemExit('no such port')"], tmp_path, {}) as found,
        pytest.raises(RuntimeError, match="no such port"),
    ):
        while True:
            found.alive()


def side(**cell: float) -> dict[str, Any]:
    figures = {"cpu_ms_per_request": 1.0, "requests_per_s": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, **cell}
    ways = {"JSON": {str(count): figures for count in (1, 8, 32)}}
    return {
        "start_s": 1.0,
        "idle_mib": 50.0,
        "loaded_mib": 60.0,
        "later_mib": 55.0,
        "processes": 3,
        "ways": ways,
    }


def test_where_a_peer_is_better_is_said() -> None:
    better = {"litserve": {"mlp": {"edgekit": side(), "peer": side(requests_per_s=110.0)}}}
    assert len(list(peers.behind(better))) == 3
    assert "requests_per_s 110.0 against 100.0" in next(peers.behind(better))
    equal = {"litserve": {"mlp": {"edgekit": side(), "peer": side(requests_per_s=104.0, p50_ms=2.0)}}}
    assert list(peers.behind(equal)) == []


def test_tables() -> None:
    sides = {"edgekit": side(), "peer": side(cpu_ms_per_request=3.0)}
    found = {"litserve": {"mlp": sides, "cnn": sides}}
    rows = peers.table(found, "")["rows"]
    assert [row[:4] for row in rows[:2]] == [
        ["mlp, JSON", "edgekit", "1.000", "1.000"],
        ["mlp, JSON", "LitServe", "3.000", "3.000"],
    ]
    assert [row[0].split()[0] for row in peers.footprint(found)["rows"]] == ["edgekit", "LitServe"]
