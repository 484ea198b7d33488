"""Which role a request needs, and what a bearer token opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit_agent import tokens
from edgekit_agent.serve.access import ANY, INFER, OBSERVE, OPEN, Access, Refused, wanted, wanted_grpc
from edgekit_agent.tokens import Token


@pytest.mark.parametrize(
    ("method", "path", "need"),
    [
        ("GET", "v2/health/live", OPEN), ("GET", "v2/health/ready", OPEN), ("GET", "ping", OPEN),
        ("GET", "v2", ANY), ("GET", "v2/models/m", ANY), ("GET", "v2/models/m/ready", ANY),
        ("POST", "v2/repository/index", ANY), ("GET", "v1/models/m", ANY), ("OPTIONS", "", ANY),
        ("GET", "metrics", OBSERVE), ("GET", "v2/models/stats", OBSERVE),
        ("GET", "v2/models/m/stats", OBSERVE),
        ("GET", "v2/models/m/versions/1/stats", OBSERVE), ("GET", "v2/logging", OBSERVE),
        ("POST", "v2/logging", OBSERVE), ("POST", "v2/trace/setting", OBSERVE),
        ("GET", "v2/models/m/trace/setting", OBSERVE),
        ("POST", "v2/models/m/infer", INFER), ("POST", "v2/models/m/generate", INFER),
        ("POST", "v1/models/m:predict", INFER), ("POST", "predictions/m", INFER),
        ("PUT", "predictions/m", INFER),
        ("POST", "v2/models/stats/infer", INFER), ("POST", "v2/systemsharedmemory/region/r/register", INFER),
        ("POST", "v2/repository/models/m/load", INFER), ("DELETE", "models/m", INFER),
    ],
)  # fmt: skip
def test_roles_of_http_requests(method: str, path: str, need: str) -> None:
    assert wanted(method.encode(), path.split("/")) == need


@pytest.mark.parametrize(
    ("path", "need"),
    [
        ("/inference.GRPCInferenceService/ServerLive", OPEN),
        ("/grpc.health.v1.Health/Check", OPEN),
        ("/inference.GRPCInferenceService/ModelMetadata", ANY),
        ("/tensorflow.serving.ModelService/GetModelStatus", ANY),
        ("/inference.GRPCInferenceService/ModelStatistics", OBSERVE),
        ("/inference.GRPCInferenceService/ModelInfer", INFER),
        ("/tensorflow.serving.PredictionService/Predict", INFER),
        ("/who/knows", INFER),
    ],
)
def test_roles_of_grpc_calls(path: str, need: str) -> None:
    assert wanted_grpc(path) == need


def test_what_a_token_opens(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    app, _ = tokens.create(file, "app", ("infer",))
    meter, _ = tokens.create(file, "meter", ("observe",))
    access = Access(file)

    def status(need: str, header: str | None) -> int:
        found = access.check(need, header.encode() if header is not None else None)
        return found.status if isinstance(found, Refused) else 200

    assert status(OPEN, None) == 200 and status(OPEN, "Bearer nonsense") == 200
    for need in (ANY, INFER, OBSERVE):
        assert status(need, None) == status(need, "") == status(need, f"Basic {app}") == 401
        assert status(need, f"Bearer {app}x") == status(need, app) == status(need, "Bearer") == 401
    assert [status(need, f"Bearer {app}") for need in (ANY, INFER, OBSERVE)] == [200, 200, 403]
    assert [status(need, f"bearer  {meter}") for need in (ANY, INFER, OBSERVE)] == [200, 403, 200]
    refused = access.check(INFER, None)
    assert isinstance(refused, Refused) and refused.extra == "WWW-Authenticate: Bearer\r\n"
    token = access.check(INFER, f"Bearer {app}".encode())
    assert isinstance(token, Token) and token.name == "app"


def test_a_changed_file_counts_and_a_broken_one_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    first, token = tokens.create(file, "a", ("infer",))
    access = Access(file)
    second, _ = tokens.create(file, "b", ("infer",))
    before = access.generation
    access.refresh()
    assert isinstance(access.check(INFER, f"Bearer {second}".encode()), Token) and access.generation > before
    tokens.revoke(file, token.id)
    access.refresh()
    assert isinstance(access.check(INFER, f"Bearer {first}".encode()), Refused)
    assert isinstance(access.check(INFER, f"Bearer {second}".encode()), Token)
    file.chmod(0o644)
    access.refresh()
    assert isinstance(access.check(INFER, f"Bearer {second}".encode()), Refused)
    file.chmod(0o600)
    access.refresh()
    assert isinstance(access.check(INFER, f"Bearer {second}".encode()), Token)
    file.unlink()
    access.refresh()
    assert isinstance(access.check(INFER, f"Bearer {second}".encode()), Refused)
    with pytest.raises(ConfigError):
        Access(file)
