"""The import contracts hold, and each one catches a violation planted into a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PLANTED = {
    "edgekit is layered, every module has a place": ("edgekit/errors.py", "import edgekit.bundle"),
    "the client needs NumPy and nothing else": ("edgekit/client/_http.py", "import dacite"),
    "engines never import each other": (
        "edgekit/runtimes/reference.py",
        "import edgekit.runtimes.onnxruntime",
    ),
    "backends never import each other": (
        "edgekit/backends/openvino.py",
        "import edgekit.backends.onnxruntime",
    ),
    "edgekit sees neither agent nor fleet": ("edgekit/cli/__init__.py", "import edgekit_fleet"),
    "the agent needs no builder": ("agent/edgekit_agent/main.py", "import edgekit.build"),
    "the fleet runs no models": ("fleet/edgekit_fleet/main.py", "import edgekit.runtimes"),
    "only crypto touches cryptography": ("edgekit/bundle/__init__.py", "import cryptography"),
}


def lint(folder: Path) -> str:
    """Run import-linter on the sources under `folder`; the report, without colours."""
    linter = Path(sys.executable).with_name("lint-imports")
    path = os.pathsep.join(str(folder / part) for part in ("", "agent", "fleet"))
    done = subprocess.run(
        [linter, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("edgekit", "agent", "fleet", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_contracts_are_kept(sources: Path) -> None:
    report = lint(sources)
    assert "0 broken" in report, report


def test_every_contract_has_a_planted_violation() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == set(PLANTED)


@pytest.mark.parametrize("contract", PLANTED)
def test_planted_violation_is_caught(contract: str, sources: Path) -> None:
    file, line = PLANTED[contract]
    target = sources / file
    target.write_text(target.read_text() + f"\n{line}\n")
    report = lint(sources)
    assert f"{contract} BROKEN" in report, report


def test_a_module_without_a_layer_is_caught(sources: Path) -> None:
    (sources / "edgekit" / "common.py").write_text("")
    assert "edgekit is layered, every module has a place BROKEN" in lint(sources)
