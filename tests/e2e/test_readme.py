"""README's file-to-answer commands, as they are written: typed into bash, with curl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BIN = Path(sys.executable).parent
LESS = " --engine onnxruntime --effort quick --no-robustness"
"""Added to the pictures' builds, which would otherwise try every engine for minutes."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipelines")]
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository")


def commands(release: str) -> list[str]:
    """The build, serve and curl lines that are about `release`, in this order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    at = next(n for n, line in enumerate(lines) if line.startswith("curl") and f"/models/{release}/" in line)
    assert lines[at - 2].startswith("edgekit build") and lines[at - 1].startswith("edgekit-agent serve")
    return lines[at - 2 : at + 1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in which the README's paths exist."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def answer(place: Path, release: str, less: str = "") -> dict[str, Any]:
    """What curl prints. Only the port differs from the text, for other agents run beside this one."""
    build, serve, curl = commands(release)
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "EDGEKIT_KEYS": str(place / "keys"),
        "EDGEKIT_CACHE": str(place / "cache"),
    }

    def typed(line: str) -> list[str]:
        return ["bash", "-c", line]

    subprocess.run(typed(f"{build} --quiet{less}"), cwd=place, env=environment, check=True)
    words = typed(f"exec {serve} --port {port}")
    with subprocess.Popen(words, cwd=place, env=environment, stdout=subprocess.PIPE) as agent:
        try:
            assert agent.stdout is not None and b"endpoint" in agent.stdout.readline()
            there = curl.replace("localhost:8000", f"localhost:{port}")
            asked = typed(f"{there} --silent --show-error --fail")
            made = subprocess.run(asked, cwd=place, env=environment, stdout=subprocess.PIPE, check=True)
        finally:
            agent.terminate()
            assert agent.wait(timeout=30) == 0
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_a_recording(place: Path) -> None:
    found = answer(place, "kws")
    assert found["label"] == "stop"


@needs_data
def test_a_picture(place: Path) -> None:
    tars = SHARED / "cifar10-jpeg"
    for file in (SHARED / "cifar10-resnet20" / "resnet20.onnx", *tars.glob("*.tar")):
        (place / file.name).symlink_to(file)
    with tarfile.open(tars / "test_2000.tar") as archive:
        info = next(i for i in archive if i.name.endswith("/cat/0000.jpg"))
        stream = archive.extractfile(info)
        assert stream is not None
        (place / "cat.jpg").write_bytes(stream.read())
    found = answer(place, "resnet20", LESS)
    assert found["label"] == "cat" and len(found["top"]) == 3


@needs_data
def test_a_photo(place: Path) -> None:
    data = SHARED / "fastestdet"
    for name in ("photos", "more-photos"):
        (place / name).mkdir()
        for number in range(5):
            (place / name / f"{number}.jpg").symlink_to(data / f"{number}.jpg")
    for name in ("FastestDet.onnx", "coco.names"):
        (place / name).symlink_to(data / name)
    (place / "photo.jpg").symlink_to(data / "1.jpg")
    found = answer(place, "detector", LESS)
    (golden,) = json.loads((data / "fp32_detections_thr065.json").read_text())["1.jpg"]
    (box,) = found["boxes"]
    assert box["label"] == golden["label"] == "bus"
    left, top, right, bottom = box["box"]
    width, height = found["width"], found["height"]
    shares = (left / width, top / height, right / width, bottom / height)
    assert shares == pytest.approx(golden["box"], abs=0.05)
