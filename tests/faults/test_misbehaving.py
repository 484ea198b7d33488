"""Models that segfault, hang, spin or leak in a running agent: each costs its own requests, nothing else."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.agent_latency import ask as ask_raw
from benchmarks.agent_latency import binary_request
from edgekit import bundle
from edgekit.bundle.model import Variant
from edgekit.errors import EngineError, GoldenError, SystemFault
from edgekit.runtimes import Array
from edgekit.runtimes._preprocess import apply
from edgekit.wire import JobState
from edgekit_agent import spare
from edgekit_agent.config import ServeSection
from edgekit_agent.prepare import Prepared, into_memory
from edgekit_agent.prove import probe
from edgekit_agent.supervisor import Supervisor
from tests.support import stranger
from tests.support.agent_process import AGENT, Device, device
from tests.support.bundles import Keys
from tests.support.devices import Client, X, poison, release, strange, variant, wait_for
from tests.support.serving import UnixConnection, keyword_spotter
from tests.support.started import started
from tests.unit.runtimes import kws

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def running(folder: Path, mode: str, **serve: object) -> Iterator[Device]:
    """An agent that serves a good 1.0.0 and then, committed, 2.0.0 of this mode."""
    environment = {"PYTHONPATH": str(stranger.install(folder))}
    with device(folder, environment, **serve) as made:
        for version, one in (("1.0.0", variant(1.0)), ("2.0.0", strange(2.0, mode))):
            job = made.assign(release(folder, version, one, keys=made.place.keys))
            made.start()
            assert made.end_of(job.job) is JobState.SUCCEEDED, made.log()
            if version == "1.0.0":
                made.close()
        assert made.client.served_weight() == 2.0
        yield made


def ask(made: Device, x: Array) -> str:
    """What a client of a bad input sees: the status, or that the connection was lost."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    try:
        return str(made.client.request("POST", "/v2/models/tiny/infer", {"inputs": [tensor]})[0])
    except (OSError, http.client.HTTPException):
        return "lost"


def pending(made: Device) -> int:
    """Requests that the serving process has begun."""
    text = str(made.client.request("GET", "/metrics")[1])
    found = re.search(r"^nv_inference_pending_request_count\{.*\} (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def revivals(made: Device) -> int:
    return made.log().count("serving tiny:2.0.0 again after")


def answers(made: Device) -> float:
    """Which release answers, as soon as one does: a connection of the dying process may be lost."""
    found: list[float] = []
    wait_for("an answer", lambda: bool(found.append(made.client.served_weight()) or found))  # type: ignore[func-returns-value]
    return found[0]


@pytest.mark.parametrize("mode", ["run-crash", "run-hang", "run-hang-gil", "run-spin"])
def test_the_last_good_release_answers_again(tmp_path: Path, mode: str) -> None:
    with running(tmp_path, mode, stall_s=0.5, crash_limit=0) as made:
        assert made.child is not None
        supervisor = psutil.Process(made.child.pid)
        for turn in range(1, 4):
            wait_for("a spare", lambda: len(made.workers()) == 2)
            assert ask(made, poison()) == "lost"
            assert answers(made) == 2.0
            wait_for("the log", lambda n=turn: revivals(made) == n)  # type: ignore[misc]
        assert supervisor.is_running() and made.child.poll() is None
        assert "Traceback" not in made.log()
        said = json.loads(subprocess.check_output([AGENT, "status", "--state", str(made.state)]))
        assert (said["current"]["release"], said["notice"], said["job"]) == ("tiny:2.0.0", "", None)


def test_requests_beside_one_that_hangs_are_told(tmp_path: Path) -> None:
    """The engine runs in a thread, so the loop lives and can say what became of them."""
    with running(tmp_path, "slowly-run-hang", stall_s=3.0, crash_limit=0) as made:
        wait_for("a spare", lambda: len(made.workers()) == 2)
        said: dict[str, str] = {}

        def one(name: str, x: Array) -> threading.Thread:
            thread = threading.Thread(target=lambda: said.update({name: ask(made, x)}))
            thread.start()
            return thread

        threads = [one("hangs", poison())]
        wait_for("the one that hangs", lambda: pending(made) == 1)
        threads += [one(f"beside {i}", X) for i in range(4)]
        for thread in threads:
            thread.join()
        assert said.pop("hangs") == "500"
        assert set(said.values()) <= {"503", "200"}, said  # 200: the successor accepted it
        assert "503" in said.values()
        assert answers(made) == 2.0


def test_a_release_that_keeps_crashing_gives_way_to_the_one_before(tmp_path: Path) -> None:
    with running(tmp_path, "run-crash", crash_limit=3) as made:
        for turn in range(1, 4):
            assert ask(made, poison()) == "lost"
            assert answers(made) == (2.0 if turn < 3 else 1.0)
        said = json.loads(subprocess.check_output([AGENT, "status", "--state", str(made.state)]))
        assert (said["current"]["release"], said["previous"]) == ("tiny:1.0.0", None)
        assert said["notice"].startswith("tiny:2.0.0 crashed")
        made.kill()
        made.start()
        assert answers(made) == 1.0, "for good: a restart serves it too"
        # What was assigned is not forgotten: assigned once more, it is tried once more.
        made.close()
        again = made.assign(release(tmp_path, "2.0.1", variant(3.0), keys=made.place.keys))
        made.start()
        assert made.end_of(again.job) is JobState.SUCCEEDED and made.client.served_weight() == 3.0
        said = json.loads(subprocess.check_output([AGENT, "status", "--state", str(made.state)]))
        assert said["notice"] == "" and said["previous"]["release"] == "tiny:1.0.0"


class Traffic:
    """Two clients that count what is not a right answer: one opens a connection per request as curl does, the
    other keeps its connection until an answer says that it was the last."""

    def __init__(self, made: Device) -> None:
        self.good, self.bad = 0, list[str]()
        self._client, self._stop = made.client, threading.Event()
        self._kept = UnixConnection(made.state / "agent.sock")
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in (self._new, self._same)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._kept.close()

    def _new(self) -> None:
        assert self._client.served_weight() == 2.0

    def _same(self) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}
        self._kept.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}))
        response = self._kept.getresponse()
        assert json.loads(response.read())["outputs"][0]["data"] == [2.0, -2.0]

    def _run(self, ask_once: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                ask_once()
                self.good += 1
            except (OSError, http.client.HTTPException, AssertionError) as exc:
                self.bad.append(repr(exc))
            time.sleep(0.01)


def serving(made: Device) -> psutil.Process:
    """The process that answers: the spare has no model, hence less memory."""
    return max(made.workers(), key=resident)


def resident(process: psutil.Process) -> int:
    """Bytes; 0 of one that has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def test_a_leak_is_replaced_and_no_request_lost(tmp_path: Path) -> None:
    with running(tmp_path, "leak", memory_mib=200, crash_limit=0) as made:
        leaking = serving(made)
        with Traffic(made) as traffic:
            while leaking.memory_info().rss < 205 << 20:
                assert ask(made, poison(10)) == "200"
            wait_for("the end of what leaks", lambda: not leaking.is_running(), 30)
            seen = traffic.good
            wait_for("answers", lambda: traffic.good > seen + 5)
        assert traffic.bad == []
        assert 0 < resident(serving(made)) < 200 << 20
        assert "MiB of memory, 200 MiB are its budget" in made.log()


def test_a_request_beyond_the_budget_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "leak", memory_mib=200, crash_limit=0) as made:
        before = serving(made)
        assert ask(made, poison(400)) == "503"
        assert made.client.served_weight() == 2.0
        assert serving(made).pid == before.pid


@pytest.mark.slow
def test_work_that_nobody_asked_for_ends(tmp_path: Path) -> None:
    with running(tmp_path, "spin-after", crash_limit=0) as made:
        spinning = serving(made)
        assert ask(made, poison()) == "200"
        wait_for("the end of what spins", lambda: not spinning.is_running(), 60)
        assert answers(made) == 2.0
        assert "of the processor" in made.log()


# -- candidates that pass the probe and misbehave in the serving process


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("PYTHONPATH", str(stranger.install(tmp_path)))
    made = Supervisor(ServeSection(port=0, unix=str(tmp_path / "s.sock")))
    made.start()
    try:
        yield made
    finally:
        made.stop()


def prepared(folder: Path, version: str, one: Variant) -> Prepared:
    keys = Keys()
    opened = bundle.open(release(folder, version, one, keys=keys), [keys.signer.public()])
    return into_memory(opened, opened.variants[0], opened.content_key(keys.recipient))


@pytest.mark.parametrize("mode", ["crash-in-serving", "hang-in-serving"])
def test_a_candidate_that_takes_serving_down_changes_nothing(
    tmp_path: Path, supervisor: Supervisor, mode: str
) -> None:
    client = Client(unix=tmp_path / "s.sock")
    supervisor.swap(prepared(tmp_path, "1.0.0", variant(1.0)), 60)
    assert client.served_weight() == 1.0
    bad = prepared(tmp_path, "2.0.0", strange(2.0, mode))
    with pytest.raises(SystemFault):
        supervisor.swap(bad, 3)
    bad.close()
    assert client.served_weight() == 1.0, "at once: swap puts it back before it raises"
    later = prepared(tmp_path, "3.0.0", strange(2.0, "fine"))
    supervisor.swap(later, 60)
    assert client.served_weight() == 2.0, "nothing is stuck"


@pytest.mark.parametrize("mode", ["killed-once", "killed-always"])
def test_a_kill_from_outside_is_not_the_candidates_fault_the_first_time(
    tmp_path: Path, supervisor: Supervisor, mode: str
) -> None:
    client = Client(unix=tmp_path / "s.sock")
    supervisor.swap(prepared(tmp_path, "1.0.0", variant(1.0)), 60)
    candidate = prepared(tmp_path, "2.0.0", strange(2.0, mode))
    if mode == "killed-once":
        assert supervisor.swap(candidate, 60).ok
        assert client.served_weight() == 2.0
    else:
        with pytest.raises(SystemFault):
            supervisor.swap(candidate, 60)
        candidate.close()
        assert client.served_weight() == 1.0


def test_where_memory_is_short_the_old_release_ends_first_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Supervisor(ServeSection(port=0, unix=str(tmp_path / "s.sock"), spare="never", announce_s=2.0))
    made.start()
    client = Client(unix=tmp_path / "s.sock")
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def watch() -> None:
        """(readiness, which release answers) again and again."""
        while not stop.is_set():
            ready = client.request("GET", "/v2/health/ready")[0]
            try:
                seen.append((ready, str(client.served_weight())))
            except AssertionError as exc:
                assert "no model is loaded" in str(exc)
                seen.append((ready, "503"))

    try:
        made.swap(prepared(tmp_path, "1.0.0", variant(1.0)), 60)
        assert client.served_weight() == 1.0
        monkeypatch.setattr("edgekit_agent.board.available_mib", lambda: 10.0)
        with pytest.raises(GoldenError):
            made.swap(prepared(tmp_path, "2.0.0", variant(2.0, lie=1.0)), 60)
        assert client.served_weight() == 1.0, "a candidate that fails brings the old one back"
        thread = threading.Thread(target=watch)
        thread.start()
        made.swap(prepared(tmp_path, "3.0.0", variant(3.0)), 60)
        wait_for("the new one", lambda: (200, "3.0") in seen)
        stop.set()
        thread.join()
        assert (503, "1.0") in seen, "announced before it ends"
        assert seen.index((503, "1.0")) < seen.index((200, "3.0"))
    finally:
        stop.set()
        made.stop()


def test_a_candidate_beyond_its_budget_ends_in_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(stranger.install(tmp_path)))
    hungry = prepared(tmp_path, "1.0.0", strange(2.0, "eat", budget_mib=100.0))
    with pytest.raises(EngineError, match=r"Unable to allocate|MemoryError|not enough memory"):
        probe(hungry, 60, lambda: None)
    hungry.close()
    modest = prepared(tmp_path, "2.0.0", strange(2.0, "fine", budget_mib=100.0))
    assert probe(modest, 60, lambda: None).ok
    modest.close()


# -- the spare


def test_a_spare_costs_nothing_where_memory_is_short() -> None:
    started: list[int] = []

    def start() -> Callable[[], None]:
        started.append(1)
        raise SystemFault("no process today")

    free = [100.0]
    made = spare.Spare(start, "auto", lambda: free[0])  # type: ignore[arg-type]
    made.tend("reference")
    assert started == [] and not made.ready
    free[0] = 1000.0
    made.tend("reference")
    wait_for("a start", lambda: started == [1])
    made.tend("reference")
    assert started == [1], "what failed is not tried again at once"
    made.close()


def test_a_machine_that_stands_still_costs_nobody_an_answer(tmp_path: Path) -> None:
    """As when a virtual machine is paused: everything stops in the middle of inferences, for longer than any
    may take, and goes on."""
    failed: list[str] = []
    with started(tmp_path, keyword_spotter()) as agent:
        message = binary_request(apply(kws.SCALE.affine[0], kws.data()[0][:64]))
        done = threading.Event()

        def load() -> None:
            with socket.create_connection(("127.0.0.1", agent.port), timeout=30) as sock:
                while not done.is_set():
                    try:
                        ask_raw(sock, message)
                    except (OSError, RuntimeError) as exc:
                        failed.append(str(exc))
                        return

        clients = [threading.Thread(target=load) for _ in range(3)]
        for client in clients:
            client.start()
        for _ in range(2):
            time.sleep(0.7)
            agent.serving.suspend()
            agent.supervisor.suspend()
            time.sleep(3.5)
            agent.supervisor.resume()
            agent.serving.resume()
        time.sleep(0.7)
        done.set()
        for client in clients:
            client.join()
        assert failed == [] and agent.same(), agent.log.read_text()
