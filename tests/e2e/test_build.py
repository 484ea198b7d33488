"""`edgekit build` through its command line, on a real model, with real engines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import bundle, cli, runtimes
from edgekit.build import plan
from edgekit.build.cache import unpack
from edgekit.bundle.model import Certificate
from edgekit.crypto.keyring import KeyRing
from edgekit.runtimes import _golden
from tests.support.namespaces import unshare, walled
from tests.unit.build import models

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("build")]

EDGEKIT = str(Path(sys.executable).parent / "edgekit")
KWS = Path(__file__).parents[2] / "examples" / "kws"
MODEL, DATA = KWS / "kws_fp32.onnx", KWS / "kws01_eval.npz"
PROFILES = ("jetson", "raspberry-pi-5", "intel-nuc")
AFFINE = ["--affine", "0.5847029089927673,83"]
Words = list[str | Path]
GOOD: Words = ["--calibration", f"{DATA}[0:200]", "--evaluate", f"{DATA}[200:1000]", "--labels", "y", *AFFINE]
SMALL: Words = ["--precision", "int8", "--objective", "size"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Bench:
    """Keys and a cache that all tests here share, and a folder for what they build."""

    folder: Path

    @property
    def ring(self) -> KeyRing:
        return KeyRing(self.folder / "keys")

    @property
    def environment(self) -> dict[str, str]:
        places = {"EDGEKIT_KEYS": str(self.ring.folder), "EDGEKIT_CACHE": str(self.folder / "cache")}
        return {**os.environ, **places}

    def run(self, *words: str | Path, through: list[str] | None = None) -> Done:
        command = [*(through or []), EDGEKIT, *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def build(self, name: str, *words: str | Path, profiles: tuple[str, ...] = PROFILES) -> Done:
        chosen = [word for profile in profiles for word in ("--profile", profile)]
        return self.run("build", MODEL, *chosen, "--name", "kws", "-o", self.folder / name, *words)

    def open(self, name: str) -> bundle.Bundle:
        return bundle.open(self.folder / name, [self.ring.verify_key()])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("build")
    KeyRing(folder / "keys").generate()
    return Bench(folder)


@pytest.fixture(scope="module")
def first(bench: Bench) -> Done:
    """The three profiles' bundle, `kws.edgekit`, from an empty cache."""
    return bench.build("kws.edgekit", *GOOD, *SMALL, "--json")


@pytest.fixture(scope="module")
def zeros(bench: Bench) -> Words:
    """Calibration on zeros: every range is learnt wrong."""
    path = bench.folder / "zeros.npz"
    np.savez(path, x=np.full((64, 49, 10, 1), 83, np.int8))  # 83 is what the affine turns into 0
    return ["--calibration", path, "--evaluate", f"{DATA}[200:1000]", "--labels", "y", *AFFINE, *SMALL]


@pytest.fixture(scope="module")
def forced(bench: Bench, first: Done, zeros: Words) -> tuple[Done, Done, bool]:
    """The same bad build refused, then forced; and whether the refused one left a file."""
    refused = bench.build("zeros.edgekit", *zeros, profiles=("jetson",))
    left = (bench.folder / "zeros.edgekit").exists()
    return refused, bench.build("zeros.edgekit", *zeros, "--no-gate", profiles=("jetson",)), left


def test_three_profiles_get_small_int8_variants_as_good_as_fp32(bench: Bench, first: Done) -> None:
    assert first.code == 0, first.err
    opened = bench.open("kws.edgekit")
    # TensorRT's variant comes first and cannot be measured here: the best that was ships beside it.
    assert [entry.config.profile for entry in opened.variants] == ["jetson", *PROFILES]
    assert opened.encrypted
    for entry in opened.variants:
        c = entry.certificate
        assert entry.config.precision == "int8"
        limit = 135_000 if c.stand_in else 90_000
        assert c.size_bytes == sum(blob.plaintext_size_bytes for blob in entry.blobs) < limit
        assert abs(c.accuracy.value - c.baseline_accuracy.value) <= 0.01
        assert 0.90 < c.baseline_accuracy.value < 0.93
        assert c.samples == 800
        assert c.source_sha256 == hashlib.sha256(MODEL.read_bytes()).hexdigest()
        assert all(gate.passed for gate in c.gates)
        assert not c.gate_skipped
    assert {certificate["variant"] for certificate in first.answer["certificates"]} == {
        entry.config.variant for entry in opened.variants
    }


def test_every_candidate_is_explained(first: Done) -> None:
    candidates = first.answer["candidates"]
    tried = [one for one in candidates if one["figures"]]
    assert len(tried) == 8
    untried = [one["error"] for one in candidates if not one["figures"]]
    assert untried
    assert all(error.startswith("not worth trying: ") for error in untried)
    assert sum(one["kept"] for one in candidates) == 4
    assert all(one["reason"] for one in candidates)
    assert {one["engine"] for one in candidates} == {"litert", "onnxruntime", "openvino", "tensorrt"}


def test_a_person_can_read_the_certificate(bench: Bench, first: Done) -> None:
    shown = bench.run(
        "inspect", bench.folder / "kws.edgekit", "--certificate", "jetson.openvino.int8-performance"
    )
    assert shown.code == 0, shown.err
    assert "On 800 evaluation samples its accuracy is 0.91" in shown.out
    assert "passed  accuracy" in shown.out
    assert "not measured on the target" in shown.out


def test_a_certificate_by_a_stand_in_says_so_first(bench: Bench, first: Done) -> None:
    (entry,) = (e for e in bench.open("kws.edgekit").variants if e.config.engine.name == "tensorrt")
    c = entry.certificate
    assert (c.measured_on_target, c.engine_version, c.coverage) == (False, "", {})
    assert c.stand_in.startswith("onnxruntime 1.")
    shown = bench.run("inspect", bench.folder / "kws.edgekit", "--certificate", c.variant).out
    assert "NOT MEASURED ON tensorrt: every figure below is of onnxruntime 1." in shown
    assert "each device makes its own engine" in shown
    (figures,) = (one for one in first.answer["candidates"] if one["engine"] == "tensorrt")
    assert figures["kept"] and figures["figures"]["stand_in"] == "onnxruntime"


def test_the_bundle_verifies_to_the_last_byte(bench: Bench, first: Done) -> None:
    done = bench.run("verify", bench.folder / "kws.edgekit", "--key", bench.ring.recipient_private, "--json")
    assert done.code == 0, done.err
    assert done.answer["files_checked"] >= 6
    assert done.answer["digest"] == first.answer["digest"]


def test_the_model_answers_what_was_certified(bench: Bench, first: Done) -> None:
    opened = bench.open("kws.edgekit")
    key = opened.content_key(bench.ring.sealing_key())
    with np.load(DATA) as file:
        rows, labels = file["x"][200:1000], file["y"][200:1000]
    real = (rows.astype(np.float32) - np.float32(83)) * np.float32(0.5847029089927673)
    for entry in opened.variants:
        name = entry.config.engine.name
        files, options = plan.measured(name, opened.read(entry, key), dict(entry.config.options))
        session = runtimes.get(plan.stand_in(name) or name).load(files, options)
        report = _golden.check(session, entry.golden, opened.read_golden(entry, key))
        assert report.samples == 16
        (name,) = (spec.name for spec in entry.config.inputs)
        (output,) = (spec.name for spec in entry.config.outputs)
        right = sum(
            int(session.run({name: row[None]})[output].argmax()) == y
            for row, y in zip(real, labels, strict=True)
        )
        assert right / 800 == entry.certificate.accuracy.value
        session.close()


def test_the_second_build_is_answered_by_the_cache_and_equal_to_the_byte(bench: Bench, first: Done) -> None:
    seen = [bench.build(f"plain{i}.edgekit", *GOOD, *SMALL, "--no-encrypt", "--json") for i in range(2)]
    assert [done.code for done in seen] == [0, 0]
    # 10 recipes built and 10 measured (with the four fp32 baselines), each once for all profiles; three of
    # them ship and were asked on disturbed rows.
    assert seen[1].answer["cache_hits"] == 23
    assert seen[0].answer["digest"] == seen[1].answer["digest"]
    plain = [(bench.folder / f"plain{i}.edgekit").read_bytes() for i in range(2)]
    assert plain[0] == plain[1]
    assert not bench.open("plain0.edgekit").encrypted
    assert [e.certificate for e in bench.open("plain0.edgekit").variants] == [
        e.certificate for e in bench.open("kws.edgekit").variants
    ]


def test_damaged_cache_entries_are_made_anew(bench: Bench, first: Done, tmp_path: Path) -> None:
    words: Words = ["--precision", "fp32", "--no-encrypt", "--json"]
    made = bench.build("a.edgekit", *GOOD, *words, profiles=("generic-cpu",))
    assert made.code == 0, made.err
    assert made.answer["cache_hits"] > 0
    cache = tmp_path / "cache"
    shutil.copytree(bench.folder / "cache", cache)
    entries = [path for path in cache.rglob("*") if path.is_file()]
    for path in entries:
        path.write_bytes(path.read_bytes()[:-1])
    again = bench.build("b.edgekit", *GOOD, *words, "--cache", cache, profiles=("generic-cpu",))
    assert again.code == 0, again.err
    assert again.answer["cache_hits"] == 0
    sound = []
    for path in entries:
        with contextlib.suppress(ValueError):
            sound.append(unpack(path.read_bytes()))
    assert len(sound) == 4  # the cleaned model, its graph's figures, the candidate, its measurement


def test_zeros_are_refused_by_the_gate(forced: tuple[Done, Done, bool]) -> None:
    refused, _, left = forced
    assert refused.code == 2
    (line,) = (line for line in refused.err.splitlines() if line.startswith("error: "))
    assert "no candidate for jetson passes the gates" in line
    assert "accuracy 0.0" in line
    assert "nothing was written" in refused.err
    assert not left


def test_no_gate_ships_it_and_the_certificate_says_so(bench: Bench, forced: tuple[Done, Done, bool]) -> None:
    _, shipped, _ = forced
    assert shipped.code == 0, shipped.err
    assert "ships although it failed a gate (--no-gate)" in shipped.out
    for entry in bench.open("zeros.edgekit").variants:
        certificate: Certificate = entry.certificate
        assert certificate.gate_skipped
        assert certificate.accuracy.value < 0.2
        assert "accuracy" in [gate.gate for gate in certificate.gates if not gate.passed]
        assert any("every value of" in warning for warning in certificate.warnings)
        assert any("lie outside the range of" in warning for warning in certificate.warnings)
        (drift,) = certificate.drift
        assert drift.outside > 0.8  # the rest is silence
    shown = bench.run("inspect", bench.folder / "zeros.edgekit", "--certificate", "all")
    assert "FAILED  accuracy" in shown.out
    assert "--no-gate" in shown.out


def test_it_builds_without_a_network(bench: Bench, first: Done) -> None:
    """With other rows, so that both quantizers really run: no library waits for an answer from outside."""
    words: Words = ["build", MODEL, "--profile", "jetson", "-o", bench.folder / "offline.edgekit"]
    rows: Words = ["--calibration", f"{DATA}[0:100]"]
    asked = bench.folder / "asked"
    done = bench.run(*words, *GOOD, *rows, *SMALL, "--json", through=walled(asked))
    assert done.code == 0, done.err
    assert asked.read_text() == "", "a library reports to its maker"
    assert done.answer["cache_hits"] == 6  # the fp32 baselines
    assert sum(one["error"] == "" for one in done.answer["candidates"]) == 3


def test_a_full_disk_leaves_nothing_behind(bench: Bench, first: Done, tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=100k tmpfs "$1" && shift && "$@"; code=$?; ls -A "$0"; exit $code'
    place = tmp_path / "small"
    place.mkdir()
    shell = [*unshare("--mount"), "sh", "-c", script, str(place), str(place)]
    words: Words = [word for profile in PROFILES for word in ("--profile", profile)]
    done = bench.run(
        "build", MODEL, *words, "-o", place / "full.edgekit", *GOOD, *SMALL, "--quiet", through=shell
    )
    assert done.code == 2
    assert done.out == ""
    assert (
        done.err.splitlines()[0] == f"error: cannot write {place / 'full.edgekit'}: No space left on device"
    )
    assert len(done.err.splitlines()) == 2


def test_a_full_cache_disk_only_costs_time(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    script = 'mount -t tmpfs -o size=8k tmpfs "$0" && exec "$@"'
    shell = [*unshare("--mount"), "sh", "-c", script, str(place)]
    out = tmp_path / "out.edgekit"
    words: Words = ["build", MODEL, "--profile", "generic-cpu", "--precision", "fp32", "--cache", place]
    done = bench.run(*words, "-o", out, *GOOD, "--json", through=shell)
    assert done.code == 0, done.err
    assert out.stat().st_size == done.answer["size_bytes"]


@pytest.fixture
def command(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """`edgekit build` in this process: an exception that is not edgekit's own fails the test."""
    monkeypatch.setenv("EDGEKIT_KEYS", str(bench.ring.folder))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))

    def run(*words: str | Path) -> Done:
        code = cli.main(["build", *map(str, words)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    yield run
    assert not list(tmp_path.glob("*.edgekit*")), "something was half-written"


def _npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def _file(folder: Path, content: bytes) -> Path:
    (folder / "bad").write_bytes(content)
    return folder / "bad"


ROWS = np.zeros((40, 49, 10, 1), np.int8)
LABELS = np.zeros(40, np.int64)
WRONG: dict[str, tuple[Callable[[Path], Words], str]] = {
    "no model": (lambda f: [f / "no.onnx", *GOOD], "No such file"),
    "model is text": (lambda f: [_file(f, b"hello"), *GOOD], "not ONNX"),
    "model is a pickle": (lambda f: [_file(f, pickle.dumps([1])), *GOOD], "a pickle runs code"),
    "model is truncated": (lambda f: [_file(f, MODEL.read_bytes()[:60_000]), *GOOD], "truncated"),
    "model holds NaN": (
        lambda f: [models.saved(f, models.linear(weight=models.WEIGHT * np.float32("nan"))), *GOOD],
        "NaN",
    ),
    "model of another shape": (lambda f: [models.saved(f, models.linear()), *GOOD], "expected shape"),
    "no data": (lambda f: [MODEL, *GOOD, "--evaluate", str(f / "no.npz")], "No such file"),
    "data is text": (
        lambda f: [MODEL, *GOOD, "--calibration", str(_file(f, b"1,2"))],
        "2 columns of numbers for",
    ),
    "data is rubbish": (lambda f: [MODEL, *GOOD, "--calibration", str(_file(f, b"\0\1"))], "no other data"),
    "no pictures": (lambda f: [MODEL, *GOOD, "--calibration", f], "no pictures in class folders"),
    "bad --image": (lambda f: [MODEL, *GOOD, "--image", "purple"], "'purple' is not known"),
    "wrong shape": (lambda f: [MODEL, *GOOD, "--calibration", _npz(f, x=ROWS[:, 1:])], "expected shape"),
    "wrong dtype": (lambda f: [MODEL, *GOOD, "--calibration", _npz(f, x=ROWS.astype("i2"))], "got INT16"),
    "no labels": (lambda f: [MODEL, *GOOD, "--evaluate", _npz(f, x=ROWS)], "no labels"),
    "wrong labels": (
        lambda f: [MODEL, *GOOD, "--evaluate", _npz(f, x=ROWS, y=LABELS + 12)],
        "classes 0 to 11",
    ),
    "negative labels": (lambda f: [MODEL, *GOOD, "--evaluate", _npz(f, x=ROWS, y=LABELS - 1)], "from -1"),
    "float labels": (lambda f: [MODEL, *GOOD, "--evaluate", _npz(f, x=ROWS, y=LABELS / 2)], "float64"),
    "no rows": (lambda f: [MODEL, *GOOD, "--evaluate", f"{DATA}[5000:]"], "at least one"),
    "pickled data": (
        lambda f: [MODEL, *GOOD, "--calibration", _npz(f, x=np.array([{}], dtype=object))],
        "never loaded",
    ),
    "unknown input": (lambda f: [MODEL, *GOOD, "--input", "a=b"], "nothing for input"),
    "bad --input": (lambda f: [MODEL, *GOOD, "--input", "a"], "not INPUT=ARRAY"),
    "bad --affine": (lambda f: [MODEL, *GOOD, "--affine", "x"], "--affine"),
    "--affine twice": (lambda f: [MODEL, *GOOD, *AFFINE], "named twice"),
    "label names": (lambda f: [MODEL, *GOOD, "--label-names", "yes,no"], "2 label names for 12 classes"),
    "label file": (lambda f: [MODEL, *GOOD, "--label-names", "none"], "neither a list"),
    "unknown profile": (
        lambda f: [MODEL, *GOOD, "--profile", "raspberry-pi-6"],
        "did you mean 'raspberry-pi-",
    ),
    "profile twice": (lambda f: [MODEL, *GOOD, "--profile", "nuc", "--profile", "intel-nuc"], "named twice"),
    "no such precision": (lambda f: [MODEL, *GOOD, "--precision", "fp16"], "no candidate at fp16"),
    "no jobs": (lambda f: [MODEL, *GOOD, "--jobs", "0"], "at least 1"),
    "output is a folder": (lambda f: [MODEL, *GOOD, "-o", f], "is a folder"),
    "no output folder": (lambda f: [MODEL, *GOOD, "-o", f / "no" / "x.edgekit"], "create it first"),
    "no key": (lambda f: [MODEL, *GOOD, "--key", f / "no.pem"], "no.pem"),
    "key is text": (lambda f: [MODEL, *GOOD, "--key", _file(f, b"x")], "bad"),
    "no recipient": (lambda f: [MODEL, *GOOD, "--recipient", f / "no.pub"], "no.pub"),
    "bad name": (lambda f: [MODEL, *GOOD, "--name", "a\nb"], "--name"),
    "bad version": (lambda f: [MODEL, *GOOD, "--version", "v" * 201], "--version"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line(command: Callable[..., Done], tmp_path: Path, case: str) -> None:
    make, words = WRONG[case]
    given = make(tmp_path)
    profile = [] if "--profile" in given else ["--profile", "generic-cpu"]
    output = [] if "-o" in given else ["-o", tmp_path / "out.edgekit"]
    done = command(*profile, *output, *given)
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("  hint: ") for line in lines[1:])
    assert len(lines) <= 2
    assert words in done.err


def test_a_refused_build_leaves_the_last_bundle_and_the_cache_as_they_are(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "kws.edgekit", tmp_path / "cache"
    monkeypatch.setenv("EDGEKIT_KEYS", str(bench.ring.folder))
    profile = ["--profile", "generic-cpu", "--precision", "fp32", "-o", str(out), "--cache", str(cache)]
    assert cli.main(["build", str(MODEL), *profile, *map(str, GOOD), "--quiet"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for case in ("model holds NaN", "no labels", "no rows", "data is rubbish", "bad --image", "wrong labels"):
        folder = tmp_path / case
        folder.mkdir()
        given = WRONG[case][0](folder)
        assert cli.main(["build", *profile, *map(str, given)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
        shutil.rmtree(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_dry_run_writes_nothing(command: Callable[..., Done], tmp_path: Path) -> None:
    done = command(MODEL, "--profile", "intel-nuc", "-o", tmp_path / "x.edgekit", *GOOD, "--dry-run")
    assert done.code == 0
    head, *lines, total = done.out.splitlines()
    first = next(line for line in lines if " first " in line)
    assert head.split() == ["candidate", "tried", "build", "s", "MiB", "ms"]
    assert first.split()[:2] == ["intel-nuc.openvino.int8-mixed", "first"]
    assert "s in all" in total
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
