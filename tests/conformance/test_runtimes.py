"""What the engine contract promises, tried on every engine that `runtimes.names()` finds."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import backends, runtimes
from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes import Array, Session
from tests.conformance.models import INPUTS, LIBRARIES, MODELS, NEEDS_HARDWARE, OUTPUTS, expected, files_of

RNG = np.random.default_rng(7)


def batch(rows: int) -> dict[str, Array]:
    return {name: RNG.normal(size=(rows, 3)).astype(np.float32) for name in INPUTS}


def agree(got: Mapping[str, Array], inputs: Mapping[str, Array]) -> bool:
    want = expected(inputs["a"], inputs["b"])
    return list(got) == list(OUTPUTS) and all(np.allclose(got[n], want[n], atol=1e-5) for n in OUTPUTS)


@pytest.fixture(params=runtimes.names())
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    assert name in MODELS or name in backends.names(), (
        f"add a tiny model for the engine {name!r} to tests/conformance/models.py"
    )
    if name in NEEDS_HARDWARE:
        try:
            runtimes.get(name).version()
        except EngineMissing as exc:
            pytest.skip(f"{exc.message} ({exc.hint})")
    return name


@pytest.fixture
def files(engine: str, tmp_path: Path) -> dict[str, bytes]:
    return files_of(engine, tmp_path)


@pytest.fixture
def session(engine: str, files: dict[str, bytes]) -> Iterator[Session]:
    session = runtimes.get(engine).load(files, {})
    yield session
    session.close()


def test_name_and_version(engine: str) -> None:
    runtime = runtimes.get(engine)
    assert runtime.name == engine
    assert re.fullmatch(r"\d+(\.\d+)+", runtime.version())


def test_answers_names_order_and_types(session: Session) -> None:
    inputs = batch(4)
    outputs = session.run(dict(reversed(inputs.items())))
    assert agree(outputs, inputs)
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}
    assert outputs["score"].shape == (4, 2)


def test_a_batch_is_its_rows(session: Session) -> None:
    for rows in (1, 5, 2):
        inputs = batch(rows)
        whole = session.run(inputs)
        parts = [session.run({n: a[i : i + 1] for n, a in inputs.items()}) for i in range(rows)]
        for name in OUTPUTS:
            assert np.allclose(whole[name], np.concatenate([part[name] for part in parts]), atol=1e-6)


def test_inputs_may_be_views_and_stay_untouched(session: Session) -> None:
    wide = {name: RNG.normal(size=(3, 8)).astype(np.float32) for name in INPUTS}
    views = {name: array.T[::2][:4] for name, array in wide.items()}
    before = {name: array.copy() for name, array in views.items()}
    assert agree(session.run(views), before)
    assert all(np.array_equal(views[name], before[name]) for name in INPUTS)


def test_outputs_survive_the_next_run(session: Session) -> None:
    first_inputs = batch(2)
    first = session.run(first_inputs)
    session.run(batch(2))
    assert agree(first, first_inputs)


def test_threads(session: Session) -> None:
    assert session.thread_safe, "an engine that is not thread-safe needs a test of its own here"
    session.run(batch(1))  # so that what an engine keeps between runs is there to be shared by mistake
    together = threading.Barrier(4)

    def work(inputs: Mapping[str, Array]) -> int:
        together.wait()
        return sum(agree(session.run(inputs), inputs) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        right = list(pool.map(work, [batch(rows) for rows in (1, 2, 3, 4)]))
    assert right == [100] * 4


def test_coverage_counts_nodes(session: Session) -> None:
    coverage = session.coverage()
    assert sum(coverage.values()) >= 2, "two operators run somewhere"
    session.close()
    assert session.coverage() == {}


def test_closed_sessions_refuse(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(batch(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": None}, "'b'"),
        ({"c": np.zeros((1, 3), np.float32)}, "'c'"),
        ({"a": np.zeros((1, 3))}, "'a'.*FP32.*FP64"),
        ({"a": np.zeros((1, 4), np.float32)}, r"'a'.*\(-1, 3\).*\(1, 4\)"),
        ({"a": np.zeros(3, np.float32)}, "'a'"),
        ({"a": [[1.0, 2.0, 3.0]]}, "'a'.*list"),
        ({"a": np.zeros((2, 3), np.float32)}, ":"),
    ],
    ids=["missing", "unknown", "dtype", "width", "rank", "list", "rows differ"],
)
def test_wrong_inputs(session: Session, change: dict[str, Any], words: str) -> None:
    good = batch(3)
    inputs = {name: value for name, value in {**good, **change}.items() if value is not None}
    with pytest.raises(EngineError, match=words) as caught:
        session.run(inputs)
    assert "\n" not in str(caught.value)
    assert agree(session.run(good), good), "a refused input must not hurt the session"


def test_bad_files(engine: str, files: dict[str, bytes]) -> None:
    runtime = runtimes.get(engine)
    biggest = max(files, key=lambda name: len(files[name]))
    bad: list[dict[str, bytes]] = [
        {},
        {"model.exe": b"x"},
        dict.fromkeys(files, b""),
        dict.fromkeys(files, b"\0\xff{<" * 99),
    ]
    bad += [{**files, biggest: files[biggest][:cut]} for cut in (1, len(files[biggest]) // 2)]
    for case in bad:
        with pytest.raises(EngineError) as caught:
            runtime.load(case, {})
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(engine)


def test_unknown_options_are_refused(engine: str, files: dict[str, bytes]) -> None:
    for key in ("no_such_option", "NO_SUCH_OPTION"):
        with pytest.raises(EngineError, match=key):
            runtimes.get(engine).load(files, {key: 1})


def test_loads_from_memory_alone(
    engine: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for variable in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(empty))
    monkeypatch.chdir(empty)
    inputs = batch(2)
    session = runtimes.get(engine).load({name: memoryview(data) for name, data in files.items()}, {})
    assert agree(session.run(inputs), inputs)
    session.close()
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("engine", sorted(LIBRARIES))
def test_missing_library(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == LIBRARIES[engine]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, LIBRARIES[engine], None)
    runtime = runtimes.get(engine)
    for action in (runtime.version, lambda: runtime.load({}, {})):
        with pytest.raises(EngineMissing) as caught:
            action()
        assert "pip install" in caught.value.hint


def test_finding_engines_imports_no_library() -> None:
    program = (
        "import sys; from edgekit import runtimes; [runtimes.get(name) for name in runtimes.names()];"
        f"print(sorted({set(LIBRARIES.values())!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(EngineMissing, match="onnxruntime"):
        runtimes.get("no-such-engine")
