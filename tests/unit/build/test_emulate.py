"""What emulation decides before anything is emulated: CPU, board, wheels, rows; how answers compare."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit import host, profile
from edgekit.build.cache import Cache
from edgekit.build.emulate import CPUS, Emulation, _emulation, _sysroot, board
from edgekit.build.emulate._cpus import cpu_of
from edgekit.build.progress import Silent
from edgekit.bundle.model import EngineRange
from edgekit.errors import ProfileError


def test_every_profile_of_a_foreign_cpu_has_one_that_stands_for_it() -> None:
    for item in profile.all_profiles().values():
        vnni = any("vnni" in feature for feature in item.hardware.isa)
        assert bool(item.hardware.emulate) == (item.hardware.architecture != "any" and not vnni)
        assert item.hardware.emulate != "max"


def test_a_board_reads_as_its_profile(tmp_path: Path) -> None:
    item = profile.get("jetson")
    for path, text in board(item).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    seen = host.read(tmp_path, "aarch64")
    assert seen.cpu == "Cortex-A78AE"
    assert not profile.unmet_by(item, seen)
    assert (seen.cores, seen.ram_mib) == (item.hardware.cores, item.hardware.ram_mib)


@pytest.mark.parametrize("name", ["cortex-a7", "host", "", "cortex-a72,sve=on"])
def test_a_cpu_of_another_architecture_is_refused(name: str) -> None:
    item = profile.get("rpi4")
    wrong = dataclasses.replace(item, hardware=dataclasses.replace(item.hardware, emulate=name))
    with pytest.raises(ProfileError, match=r"hardware\.emulate cannot be") as caught:
        cpu_of(wrong)
    assert "cortex-a72" in caught.value.hint


def test_features_are_words_that_the_cpu_list_of_the_host_module_knows() -> None:
    for cpu in CPUS.values():
        known = host.ISA_FEATURES & set(cpu.features.split())
        assert known & {"asimd", "neon", "avx2"}
        assert not {"avx512_vnni", "sme"} & known


@pytest.mark.parametrize(
    ("minimum", "below", "version"),
    [("2025.2", "", "2026.4.1"), ("2025.4", "2025.5", "2025.4.1"), ("2025.2", "2025.4", None)],
)
def test_the_newest_pinned_version_in_range_is_taken(minimum: str, below: str, version: str | None) -> None:
    found = _sysroot.lock_for(EngineRange("openvino", minimum, below), "aarch64")
    assert (found.version if found else None) == version


def test_every_lock_pins_what_its_name_says_with_hashes() -> None:
    packages = {"litert": ("ai-edge-litert", "tflite-runtime")}
    for architecture in ("aarch64", "armv7l"):
        assert _sysroot.locks(architecture)
        for lock in _sysroot.locks(architecture):
            text = lock.path.read_text()
            pins = [line for line in text.splitlines() if "==" in line]
            wanted = [f"{name}=={lock.version}" for name in packages.get(lock.engine, (lock.engine,))]
            assert any(pin.startswith(tuple(wanted)) for pin in pins)
            assert all(pin.endswith("\\") for pin in pins)
            assert text.count("--hash=sha256:") >= len(pins)


def test_the_newest_lock_is_the_hosts_own_version() -> None:
    """Else the device's wheels have been forgotten: docs/emulation.md tells how to pin them."""
    for engine, package in (
        ("onnxruntime", "onnxruntime"),
        ("openvino", "openvino"),
        ("litert", "ai-edge-litert"),
    ):
        found = _sysroot.lock_for(EngineRange(engine), "aarch64")
        assert found is not None
        assert found.version == metadata.version(package)


@pytest.mark.parametrize(
    "text",
    [
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n",
        "deb [arch=amd64] http://mirror.example/debian/ bookworm main\n",
        "# deb http://other.example/debian sid main\ndeb http://mirror.example/debian bookworm main\n",
    ],
)
def test_the_machines_own_archive_is_used(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources").write_text(text)
    monkeypatch.setattr(_sysroot, "_SOURCES", (tmp_path / "absent", tmp_path / "sources"))
    (line,) = _sysroot._mirror()
    assert (
        line.rstrip("/ ")
        .replace("debian/ ", "debian ")
        .endswith("http://mirror.example/debian bookworm main")
    )
    monkeypatch.setenv("EDGEKIT_DEBIAN_MIRROR", "http://chosen.example/debian")
    assert _sysroot._mirror()[0].endswith("http://chosen.example/debian bookworm main")


@pytest.mark.parametrize(
    ("rows", "truths", "limit", "chosen"),
    [(8, 8, 4, [0, 2, 4, 6]), (8, 4, 4, [0, 1, 4, 5]), (3, 3, 200, [0, 1, 2]), (8, 4, 1, [0, 1])],
)
def test_rows_are_spread_and_pairs_stay_together(
    rows: int, truths: int, limit: int, chosen: list[int]
) -> None:
    evaluation = SimpleNamespace(rows=rows, truth=np.zeros(truths))
    context = SimpleNamespace(evaluation=evaluation)
    emulation = Emulation(context, Cache(None), Silent(), limit)  # type: ignore[arg-type]
    assert emulation._chosen() == chosen


def test_how_far_answers_are_apart() -> None:
    here = {"y": np.array([[1.0], [2.0], [np.inf]]), "text": np.array(["a", "b", "c"])}
    same = {"y": np.array([[1.5], [np.inf]]), "text": np.array(["a", "c"])}
    assert _emulation._gap(same, here, [0, 2]) == 0.5
    assert _emulation._gap({**same, "y": np.array([[np.nan], [np.inf]])}, here, [0, 2]) > 1e300
    assert _emulation._gap({**same, "text": np.array(["a", "d"])}, here, [0, 2]) > 1e300
    joined = _emulation._joined(here, same, [0, 2])
    assert joined["y"].tolist() == [[1.5], [2.0], [np.inf]]
    assert here["y"][0, 0] == 1.0
