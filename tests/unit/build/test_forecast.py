"""The memory forecast: a formula that only looks at the engine and the files."""

from __future__ import annotations

import pytest

from edgekit.build.forecast import COPIES, ENGINE_MIB, MIB, UNKNOWN_ENGINE_MIB, memory_mib


@pytest.mark.parametrize("engine", [*ENGINE_MIB, "somebody-elses"])
def test_weights_count_several_times_on_top_of_the_engine(engine: str) -> None:
    small, large = memory_mib(engine, {}), memory_mib(engine, {"a": bytes(4 * MIB), "b": bytes(4 * MIB)})
    assert small == ENGINE_MIB.get(engine, UNKNOWN_ENGINE_MIB)
    assert large - small == pytest.approx(8 * COPIES)
