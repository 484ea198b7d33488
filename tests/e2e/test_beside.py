"""Several bundles on one device: each answers under its own name, over every protocol, in one process; when
memory does not hold all of them they take turns in it."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from edgekit import Client, files
from edgekit.bundle.model import TensorSpec
from edgekit.runtimes import reference
from edgekit_agent import scrape
from tests.support.bundles import Keys
from tests.support.serving import Candidate, candidate, config, linear, several
from tests.support.started import AGENT, Started, started, write_bundle

WIDTH = 2048
WIDE_MIB = WIDTH * WIDTH * 4 / (1 << 20)
WITHIN_S = 30.0
ROW = np.array([[1, 2, 3, 4]], np.float32)


def named(made: Candidate, name: str) -> Candidate:
    return made.changed(name=name)


def wide(name: str, gain: float) -> Candidate:
    """y = gain * x of 2048 columns on the reference engine: 16 MiB of weights."""
    weight = np.eye(WIDTH, dtype=np.float32) * np.float32(gain)
    packed = reference.pack(
        [reference.Tensor("x", "FP32", (-1, WIDTH))], ["y"], {"w": weight},
        [reference.Node("matmul", ("x", "w"), "y")],
    )  # fmt: skip
    specs = (TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, WIDTH)),)
    rows = np.random.default_rng(5).standard_normal((2, WIDTH)).astype(np.float32)
    return named(candidate(config("reference", *specs, tuple(packed)), packed, {"x": rows}), name)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """`kws` is the device's release, `twice` and `pair` stand beside it."""
    folder = tmp_path_factory.mktemp("beside")
    beside = [named(linear(2.0, "7"), "twice"), named(several("3"), "pair")]
    with started(folder, linear(), beside=beside) as found:
        yield found
        assert not found.complaints()


def _folder(base: Path, name: str) -> Path:
    (base / name).mkdir()
    return base / name


def get(agent: Started, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(agent.address, timeout=30)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def metrics(agent: Started) -> scrape.Reading:
    return scrape.fetch(f"http://{agent.address}")


def loaded(agent: Started) -> set[str]:
    found = metrics(agent).of("edgekit_model_loaded")
    return {dict(labels)["model"] for labels, value in found.items() if value}


def test_tritonclient_finds_and_asks_all_of_them(agent: Started) -> None:
    for library in (tritonclient.http, tritonclient.grpc):
        with contextlib.closing(library.InferenceServerClient(agent.address)) as client:
            for name, version, gain in (("kws", "1", 1), ("twice", "7", 2)):
                assert client.is_model_ready(name) and not client.is_model_ready(name, "9")
                tensor = library.InferInput("x", [1, 4], "FP32")
                tensor.set_data_from_numpy(ROW)
                answer = client.infer(name, [tensor], model_version=version)
                np.testing.assert_array_equal(answer.as_numpy("y"), gain * ROW)
            tensors = []
            for name in ("a", "b"):
                tensors.append(library.InferInput(name, [1, 2], "FP32"))
                tensors[-1].set_data_from_numpy(ROW[:, :2])
            answer = client.infer("pair", tensors)
            np.testing.assert_array_equal(answer.as_numpy("sum"), 2 * ROW[:, :2])
            with pytest.raises(Exception, match="unknown model: 'nobody'"):
                client.infer("nobody", tensors)
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(agent.address)) as client:
        index = client.get_model_repository_index()
        assert {(one.name, one.version, one.state) for one in index.models} == {
            ("kws", "1", "READY"), ("twice", "7", "READY"), ("pair", "3", "READY")
        }  # fmt: skip
        counted = {one.name: one.inference_count for one in client.get_inference_statistics().model_stats}
        assert counted == {"kws": 2, "twice": 2, "pair": 2}
        assert [one.name for one in client.get_inference_statistics("twice").model_stats] == ["twice"]


def test_every_protocol_knows_all_of_them(agent: Started) -> None:
    names = ["kws", "twice", "pair"]
    assert get(agent, "/v1/models") == (200, {"models": names})
    status, listed = get(agent, "/models?limit=2")
    assert status == 200 and [one["modelName"] for one in listed["models"]] == names[:2]
    status, rest = get(agent, f"/models?limit=2&next_page_token={listed['nextPageToken']}")
    assert rest == {"models": [{"modelName": "pair", "modelUrl": "pair:3"}]}
    assert [one["name"] for one in get(agent, "/v2/models/stats")[1]["model_stats"]] == names
    assert [one["name"] for one in get(agent, "/v2/repository/index", "POST", {})[1]] == names
    rows = ROW.tolist()
    doubled = [[2.0, 4.0, 6.0, 8.0]]
    assert get(agent, "/v1/models/twice:predict", "POST", {"instances": rows})[1] == {"predictions": doubled}
    assert get(agent, "/v1/models/twice/versions/7/metadata")[0] == 200
    assert get(agent, "/v1/models/twice/versions/1/metadata")[0] == 404  # that is the other one's
    status, answer = get(agent, "/predictions/twice/7", "POST", rows)
    assert status == 200 and answer == doubled
    status, missing = get(agent, "/predictions/twice/1", "POST", rows)
    assert status == 404 and "version" in missing["message"]
    assert get(agent, "/v2/health/ready") == (200, {"ready": True})


def test_edgekits_client_wants_to_know_which(agent: Started) -> None:
    with Client(f"http://{agent.address}") as client:
        with pytest.raises(Exception, match="serves 3 models") as caught:
            client.infer({"x": ROW})
        assert "kws, pair, twice" in str(caught.value.hint)  # type: ignore[attr-defined]
    with Client(f"http://{agent.address}", model="twice") as client:
        np.testing.assert_array_equal(client.infer({"x": ROW})["y"], 2 * ROW)


def test_top_shows_each_of_them(agent: Started) -> None:
    url = ["--url", f"http://{agent.address}"]
    done = subprocess.run(
        [AGENT, "top", *url, "--once", "--json", "--interval", "0.2"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    shown = json.loads(done.stdout)
    assert shown["release"] == "kws:1"
    assert [(one["model"], one["serving"]) for one in shown["models"]] == [
        ("kws", True), ("twice", True), ("pair", True)
    ]  # fmt: skip


def test_after_a_crash_the_release_is_back_and_the_others_load_when_asked(tmp_path: Path) -> None:
    with started(tmp_path, linear(), beside=[named(linear(3.0), "thrice")]) as agent:
        with Client(f"http://{agent.address}") as client:
            np.testing.assert_array_equal(client.infer({"x": ROW}, model="thrice")["y"], 3 * ROW)
        assert loaded(agent) == {"kws", "thrice"}
        agent.serving.kill()
        with Client(f"http://{agent.address}") as client:
            np.testing.assert_array_equal(client.infer({"x": ROW}, model="kws")["y"], ROW)
            assert loaded(agent) == {"kws"}
            assert metrics(agent).total("edgekit_model_loads_total") == 0
            assert get(agent, "/v2/models/thrice/ready")[0] == 200
            np.testing.assert_array_equal(client.infer({"x": ROW}, model="thrice")["y"], 3 * ROW)
        assert loaded(agent) == {"kws", "thrice"}
        assert metrics(agent).total("edgekit_model_loads_total", model="thrice") == 1


def test_who_was_asked_last_stays_in_memory(tmp_path: Path) -> None:
    models = {name: wide(name, gain) for name, gain in (("kws", 1), ("two", 2), ("three", 3))}
    release, *beside = models.values()
    row = np.arange(WIDTH, dtype=np.float32)[None]
    with (
        started(_folder(tmp_path, "a"), release, beside=beside) as agent,
        Client(f"http://{agent.address}") as client,
    ):
        for name in models:
            client.infer({"x": row}, model=name)
        all_mib = metrics(agent).total("edgekit_rss_mib")
        assert loaded(agent) == set(models)
    budget = ["--memory-mib", f"{all_mib - 0.6 * WIDE_MIB:.0f}"]
    with started(_folder(tmp_path, "b"), release, *budget, beside=beside) as agent:
        with Client(f"http://{agent.address}") as client:
            for name, gain in (("two", 2), ("three", 3), ("kws", 1), ("two", 2), ("three", 3)):
                np.testing.assert_array_equal(client.infer({"x": row}, model=name)["y"], gain * row)
                assert name in loaded(agent) != set(models)
            # The last three were asked for in this order, so the first of them rests.
            assert loaded(agent) == {"two", "three"}
        assert metrics(agent).total("edgekit_rss_mib") < all_mib
        assert agent.same() and not agent.complaints()


def test_models_that_do_not_fit_together_answer_many_clients_at_once(tmp_path: Path) -> None:
    """Nothing fails, nothing is mixed up, and the process is never replaced for its memory."""
    models = {name: wide(name, gain) for name, gain in (("kws", 1), ("two", 2), ("three", 3))}
    release, *beside = models.values()
    gains = {"kws": 1, "two": 2, "three": 3}
    row = np.arange(WIDTH, dtype=np.float32)[None]
    failed: list[str] = []
    with started(tmp_path, release, beside=beside) as agent:
        one_mib = metrics(agent).total("edgekit_rss_mib") - 1.5 * WIDE_MIB
    with started(
        _folder(tmp_path, "again"), release, "--memory-mib", f"{one_mib:.0f}", beside=beside
    ) as agent:

        def ask(name: str) -> None:
            with Client(f"http://{agent.address}", model=name) as client:
                for _ in range(20):
                    try:
                        if not np.array_equal(client.infer({"x": row})["y"], gains[name] * row):
                            failed.append(f"{name}: wrong")
                    except Exception as exc:
                        failed.append(f"{name}: {exc}")

        clients = [threading.Thread(target=ask, args=(name,)) for name in gains for _ in range(2)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        assert not failed
        assert loaded(agent) != set(models)
        assert agent.same() and not agent.complaints()


def refused(folder: Path, *bundles: Path) -> str:
    done = subprocess.run(
        [AGENT, "serve", *bundles, "--key", folder / "recipient.pem", "--trust", folder / "builder.pub"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    return done.stderr


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    keys = Keys()
    keys.recipient.save(tmp_path / "recipient.pem")
    files.write_bytes(tmp_path / "builder.pub", keys.signer.public().to_pem())
    paths = [write_bundle(tmp_path, linear(1.0, version), keys, f"{version}.edgekit") for version in "12"]
    assert "two of the bundles are called 'kws'" in refused(tmp_path, *paths)
    assert "17 bundles" in refused(tmp_path, *paths[:1] * 17)
