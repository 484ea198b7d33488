"""Tool environments: locks are complete, scripts run isolated, and whatever goes wrong inside is one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgekit import toolenv
from edgekit.errors import EngineError, EngineMissing
from edgekit.toolenv import _install, _run

SCRIPT = """
import json, os, pathlib, socket, sys
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
print("edgekit: at work", file=sys.stderr)
if job["do"] == "abort":
    os.abort()
if job["do"] == "hoard":
    bytearray(10**9)
if job["do"] == "hang":
    import time
    time.sleep(600)
if job["do"] == "refuse":
    (folder / "result.json").write_text(json.dumps({"error": "no such layer", "hint": "rename it"}))
    sys.exit(0)
with socket.socket() as one:
    one.settimeout(2)
    reached = one.connect_ex(("127.0.0.1", job["port"])) == 0
(folder / "out" / "deep").mkdir()
(folder / "out" / "deep" / "twice").write_bytes((folder / "in" / "x").read_bytes() * 2)
answer = {"reached": reached, "environment": sorted(os.environ), "home": os.environ["HOME"]}
(folder / "result.json").write_text(json.dumps(answer))
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of scripts that holds one, beside the real launcher."""
    (tmp_path / "try.py").write_text(SCRIPT)
    monkeypatch.setattr(_run, "_SCRIPTS", tmp_path)


def call(
    do: str = "well", *, port: int = 1, memory_mib: int = 8192, timeout_s: float = 60
) -> tuple[dict[str, object], dict[str, bytes]]:
    job = {"do": do, "port": port}
    return toolenv.run(toolenv.OWN, "try", job, {"x": b"ab"}, memory_mib=memory_mib, timeout_s=timeout_s)


@pytest.mark.usefixtures("scripts")
def test_files_go_in_and_out_and_no_secret_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TOKEN", "secret")
    said: list[str] = []
    result, files = toolenv.run(
        toolenv.OWN, "try", {"do": "well", "port": 1}, {"x": b"ab"}, on_line=said.append
    )
    assert files == {"deep/twice": b"abab"}
    assert said == ["at work"]
    assert "EDGEKIT_TOKEN" not in str(result["environment"])
    assert str(result["home"]) != os.environ.get("HOME")


@pytest.mark.usefixtures("scripts")
def test_a_script_has_no_network() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        result, _ = call(port=server.getsockname()[1])
    assert result["reached"] is False


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(
    ("do", "options", "words"),
    [
        ("abort", {}, "try was ended by signal 6"),
        ("hoard", {"memory_mib": 400}, "try failed with exit code 1: MemoryError"),
        ("hang", {"timeout_s": 2}, "try took more than 2 s"),
        ("refuse", {}, "no such layer"),
    ],
)
def test_what_goes_wrong_inside_is_one_line(do: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        call(do, **options)


def test_every_lock_pins_everything_with_hashes_and_names_no_registry() -> None:
    assert toolenv.names()
    for name in toolenv.names():
        text = (_install._LOCKS / f"{name}.txt").read_text()
        pins = re.findall(r"^[A-Za-z0-9]\S*==", text, re.MULTILINE)
        assert pins
        for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
            assert "==" in block.splitlines()[0]
            assert "--hash=sha256:" in block
        assert "://" not in text


def test_an_unknown_environment_or_package_says_so() -> None:
    with pytest.raises(EngineMissing, match="no tool environment is called 'nonsense'"):
        toolenv.ensure("nonsense")
    with pytest.raises(EngineMissing, match="has no nonsense"):
        toolenv.versions(toolenv.names()[0], ["nonsense"])


def test_an_environment_that_cannot_be_made_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "broken.txt").write_text(
        f"no-such-package-anywhere==1.0 --hash=sha256:{'0' * 64}\n"
    )
    monkeypatch.setattr(_install, "_LOCKS", tmp_path / "locks")
    monkeypatch.setenv("EDGEKIT_TOOLENVS", str(tmp_path / "envs"))
    for variable in ("UV_OFFLINE", "UV_NO_CONFIG"):
        monkeypatch.setenv(variable, "1")
    with pytest.raises(EngineMissing, match="cannot make the tool environment broken") as error:
        toolenv.ensure("broken")
    assert "edgekit setup broken" in error.value.hint
    assert not list((tmp_path / "envs").rglob(".complete"))


def test_a_lock_may_have_a_part_with_flags_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both parts go to uv, each with its flags; what the second asks for is looked for second."""
    (tmp_path / "locks").mkdir()
    missing = f"no-such-package-anywhere==1.0 --hash=sha256:{'0' * 64}\n"
    (tmp_path / "locks" / "two.txt").write_text(f"# edgekit: then\n# edgekit: --no-such-flag\n{missing}")
    monkeypatch.setattr(_install, "_LOCKS", tmp_path / "locks")
    monkeypatch.setenv("EDGEKIT_TOOLENVS", str(tmp_path / "envs"))
    with pytest.raises(EngineMissing, match="no-such-flag"):
        toolenv.ensure("two")
    assert toolenv.versions("two", ["no-such-package-anywhere"]) == {"no-such-package-anywhere": "1.0"}
