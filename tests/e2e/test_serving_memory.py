"""What a serving process takes under load is bounded, and goes back when the load is over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import load, nets
from benchmarks.serving import binary, pss_mib, release
from edgekit_agent.serve.quiet import QUIET_S
from tests.support.serving import stand

pytestmark = pytest.mark.slow
BODIES = 32


def test_large_bodies_of_many_clients(tmp_path: Path) -> None:
    """32 clients that send 600 KB each, which is more than the engine can take."""
    net = nets.cnn()
    made = release(net)
    message = binary(net, net.samples(1))
    with stand(tmp_path) as serving:
        pid = serving.serving.process.pid
        assert made.into(serving.serving).ok
        time.sleep(8)  # its figures are measured
        idle = pss_mib(pid)
        result = load.run(serving.address, message, BODIES, 3.0)
        assert result.answered > BODIES
        loaded = pss_mib(pid)
        time.sleep(QUIET_S + 3)
        after = pss_mib(pid)
    assert loaded - idle < 45  # the run's own scratch memory is 20 of it: not all bodies were read
    assert after - idle < 5, (idle, loaded, after)
