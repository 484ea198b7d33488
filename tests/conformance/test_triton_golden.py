"""The answers of a real Triton 2.51 (native onnxruntime backend) beside ours, request by request.

`data/triton-2.51.0-http.txt` holds what `curl -i` got from it, with the models "mlp" and "cnn". Ours has to
answer with the same status and the same document, except for what DEVIATIONS lists with its reason; an entry
that is no longer needed fails the test as well. Header fields are not compared: ours always sends JSON as
application/json, Triton sends some of it as text/plain.
"""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle.model import TensorSpec
from tests.support.serving import Stand, candidate, config, stand

GOLDEN = Path(__file__).parent / "data" / "triton-2.51.0-http.txt"
_CASE = re.compile(r"^### (GET|POST) (\S+) ?(?:-d (.*))?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Case:
    method: str
    path: str
    body: str
    status: int
    document: Any
    """None: an empty body."""

    @property
    def request(self) -> str:
        return f"{self.method} {self.path} {self.body}".strip()


def cases() -> list[Case]:
    text = GOLDEN.read_text()
    found = list(_CASE.finditer(text))
    made = []
    for case, following in zip(found, [*found[1:], None], strict=True):
        answer = text[case.end() : following.start() if following else None].strip()
        head, _, body = answer.partition("\n\n")
        status = int(head.split()[1])
        made.append(Case(case[1], case[2], case[3] or "", status, json.loads(body) if body.strip() else None))
    return made


CASES = cases()


def mlp() -> bytes:
    """64-768-768-10 with ReLU, as Triton had it; the weights are our own."""
    rng = np.random.default_rng(7)
    sizes, name, nodes, weights = (64, 768, 768, 10), "x", [], []
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        values = (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        result = "y" if layer == 2 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [result]))
        if layer < 2:
            nodes.append(helper.make_node("Relu", [result], [f"r{layer}"]))
        name = f"r{layer}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 64), ("y", 10))]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    specs = (TensorSpec("x", "FP32", (-1, 64)),), (TensorSpec("y", "FP32", (-1, 10)),)
    made = config("onnxruntime", *specs, ("model.onnx",), options={"intra_threads": 1})
    inputs = {"x": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)}
    model = candidate(made, {"model.onnx": mlp()}, inputs).changed(name="mlp")
    with stand(tmp_path_factory.mktemp("golden")) as started:
        loaded = model.into(started.serving)
        assert loaded.ok, loaded
        yield started


def covers(ours: Any, theirs: Any) -> bool:
    """Whether ours has every member that theirs has, of the same kind, however deep."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and all(k in ours and covers(ours[k], v) for k, v in theirs.items())
    if isinstance(theirs, list):
        return isinstance(ours, list) and (not theirs or (bool(ours) and covers(ours[0], theirs[0])))
    return isinstance(ours, type(theirs))


@dataclasses.dataclass(frozen=True)
class Deviation:
    why: str
    status: int
    fits: Callable[[Any, Any], bool]
    """Whether our document (first) is what it should be, given Triton's."""


def error(words: str) -> Callable[[Any, Any], bool]:
    return lambda ours, _: set(ours) == {"error"} and words in ours["error"]


def is_(document: Any) -> Callable[[Any, Any], bool]:
    return lambda ours, _: ours == document


_500 = "a client's mistake is a 400 here"
_BODY = "the Open Inference Protocol's JSON body in place of an empty one"
_FLEET = "releases come from the fleet: clients do not load or unload"
_INFER = "POST /v2/models/mlp/infer"
_ONE = "an agent serves one release; Triton had a second model"
DEVIATIONS: dict[str, Deviation] = {
    "GET /v2": Deviation(
        "its own name and version, and no sequences, CUDA memory or schedule policy", 200,
        lambda ours, theirs: ours["name"] == "edgekit"
        and set(theirs["extensions"]) - set(ours["extensions"])
        == {"sequence", "model_repository(unload_dependents)", "schedule_policy", "cuda_shared_memory"},
    ),
    "GET /v2/health/live": Deviation(_BODY, 200, is_({"live": True})),
    "GET /v2/health/ready": Deviation(_BODY, 200, is_({"ready": True})),
    "GET /v2/models/mlp/ready": Deviation(
        f"{_BODY}; and the second time Triton had unloaded it: {_FLEET}",
        200,
        is_({"name": "mlp", "ready": True}),
    ),
    "GET /v2/models/mlp/config": Deviation(
        "batch size, version and parameters are the agent's; nothing is pinned or scheduled as Triton does",
        200,
        lambda ours, theirs: all(
            covers(ours.get(name), theirs[name])
            for name in theirs
            if name not in ("version_policy", "optimization", "dynamic_batching", "parameters")
        )
        and [ours[name] for name in ("name", "platform", "backend", "input", "output")]
        == [theirs[name] for name in ("name", "platform", "backend", "input", "output")],
    ),
    "POST /v2/repository/index": Deviation(
        f"{_ONE}; and the second time it had unloaded one: {_FLEET}", 200,
        is_([{"name": "mlp", "version": "1", "state": "READY"}]),
    ),
    'POST /v2/repository/index {"ready":true}': Deviation(
        _ONE, 200, is_([{"name": "mlp", "version": "1", "state": "READY"}])
    ),
    "POST /v2/models/mlp/infer @bodies/mlp.v2.json": Deviation(
        f"other weights, so other numbers; and the second time Triton had unloaded it: {_FLEET}", 200,
        lambda ours, theirs: ours["outputs"][0]["shape"] == [1, 10]
        and ("outputs" not in theirs or covers(ours, theirs)),
    ),
    "GET /v2/models/mlp/stats": Deviation("other times", 200, covers),
    "GET /v2/models/stats": Deviation(
        f"other times; {_ONE}", 200,
        lambda ours, theirs: len(ours["model_stats"]) == 1
        and covers(ours["model_stats"][0], theirs["model_stats"][1]),
    ),
    "GET /v2/logging": Deviation(
        "by default the serving process writes warnings only", 200,
        lambda ours, theirs: ours == {**theirs, "log_info": False},
    ),
    "GET /v2/models/nope/ready": Deviation(
        "unknown is 404, as everywhere else", 404, error("unknown model: 'nope' is not found")
    ),
    "POST /v2/models/mlp/infer {bad": Deviation(_500, 400, error("failed to parse the request JSON")),
    f'{_INFER} {{"inputs":[{{"name":"x","shape":[1,63],"datatype":"FP32","data":[1]}}]}}': Deviation(
        _500, 400, error("shape [1, 63] wants 63 values, data has 1")
    ),
    f'{_INFER} {{"inputs":[{{"name":"zz","shape":[1,64],"datatype":"FP32","data":[]}}]}}': Deviation(
        _500, 400, error("shape [1, 64] wants 64 values, data has 0")
    ),
    f'{_INFER} {{"inputs":[{{"name":"x","shape":[1,64],"datatype":"INT32","data":[1]}}]}}': Deviation(
        _500, 400, error("wants 64 values, data has 1")
    ),
    "POST /v2/models/mlp/infer {}": Deviation(_500, 400, error("the request has no inputs")),
    'POST /v2/models/mlp/generate {"text_input":"x"}': Deviation(
        "other words for the missing input", 400, error("input 'x' is missing")
    ),
    'POST /v2/systemsharedmemory/region/r/register {"key":"/nope","offset":0,"byte_size":10}': Deviation(
        _500, 400, error("Unable to open shared memory region: '/nope'")
    ),
    "POST /v2/repository/models/nope/load": Deviation(_FLEET, 400, error("releases come from the fleet")),
    "POST /v2/repository/models/mlp/unload": Deviation(_FLEET, 400, error("releases come from the fleet")),
    "POST /v2/repository/models/mlp/load": Deviation(_FLEET, 400, error("releases come from the fleet")),
}  # fmt: skip


def ask(connection: http.client.HTTPConnection, case: Case) -> tuple[int, Any]:
    body: str | None = case.body or None
    if case.body.startswith("@"):
        data = [round(0.01 * number, 2) for number in range(64)]
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": data}]})
    connection.request(case.method, case.path, body)
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else None


def test_golden_answers(agent: Stand) -> None:
    """In one go and in their order: some of Triton's answers depend on those before."""
    connection = http.client.HTTPConnection(agent.address, timeout=30)
    problems, needed = [], set()
    for case in CASES:
        status, document = ask(connection, case)
        if (status, document) == (case.status, case.document):
            continue
        needed.add(case.request)
        deviation = DEVIATIONS.get(case.request)
        if deviation is None:
            problems.append(f"{case.request}: {status} {document}, Triton {case.status} {case.document}")
        elif status != deviation.status or not deviation.fits(document, case.document):
            problems.append(f"{case.request}: {status} {document} is not the listed deviation")
    connection.close()
    assert problems == []
    assert set(DEVIATIONS) - needed == set(), "these deviate no more: take them off the list"


def test_the_file_is_read_whole() -> None:
    assert len(CASES) == GOLDEN.read_text().count("### ") == 35
    assert {case.status for case in CASES} == {200, 400, 404, 405, 500}
