"""`edgekit keys`, `inspect` and `verify`."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import bundle, cli
from edgekit.bundle.model import GateResult
from edgekit.crypto.keyring import KeyRing
from tests.support.bundles import INFO, make_variant, two_variants


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """This user's keys, made on first use."""
    monkeypatch.setenv("EDGEKIT_KEYS", str(tmp_path / "keys"))
    made = KeyRing.at()
    made.ensure()
    return made


@pytest.fixture
def path(tmp_path: Path, ring: KeyRing) -> Path:
    bad = make_variant(
        gates=(GateResult("accuracy", False, "0.09 < 0.99 x 0.91"),),
        gate_skipped=True,
        measured_on_target=True,
    )
    bundle.write(
        tmp_path / "tiny.edgekit",
        INFO,
        [bad, two_variants()[1]],
        signer=ring.signing_key(),
        recipients=[ring.recipient_key()],
    )
    return tmp_path / "tiny.edgekit"


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _fails(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    assert cli.main([*map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  hint: ")
    return first, second


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "k"
    made = _json(capsys, "keys", "generate", "--dir", folder, "--kem", "MLKEM768_X25519")
    assert made == _json(capsys, "keys", "show", "--dir", folder)
    assert [key["key_id"] for key in made["keys"]] == [
        KeyRing.at(folder).verify_key().key_id,
        KeyRing.at(folder).recipient_key().key_id,
    ]
    assert cli.main(["keys", "show", "--dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "MLKEM768_X25519" in out
    assert "PRIVATE" not in out + json.dumps(made)
    assert "exists already" in _fails(capsys, "keys", "generate", "--dir", folder)[0]
    assert "keys generate" in _fails(capsys, "keys", "show", "--dir", tmp_path / "none")[1]


def test_inspect_shows_variants_and_warnings(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "tiny 1.0.0" in out
    assert "raspberry-pi-5.reference.int8" in out
    assert "FAILED: accuracy" in out
    assert "--no-gate" in out
    assert "not measured on the target" in out


def test_certificate_in_sentences(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(path), "--certificate", "all"]) == 0
    out = capsys.readouterr().out
    for part in (
        "On 800 evaluation samples its accuracy is 0.9137 (95 % confidence 0.8921 to 0.9314)",
        "no significant difference was found (McNemar p = 0.75)",
        "One inference takes 0.21 ms (95 % below 0.34 ms, 99 % below 0.5 ms, 200 runs)",
        "1.90 times as long",
        "FAILED  accuracy: 0.09 < 0.99 x 0.91",
        "passed  accuracy: accuracy 0.9137 >= 0.99 x 0.9125",
        "a failing gate was overridden",
        "outputs within 0.05, same class as the source model for at least 75%",
    ):
        assert part in out
    assert "this bundle has generic-cpu" in _fails(capsys, "inspect", path, "--certificate", "x")[1]


def test_inspect_as_json(path: Path, ring: KeyRing, capsys: pytest.CaptureFixture[str]) -> None:
    shown = _json(capsys, "inspect", path)
    opened = bundle.open(path, [ring.verify_key()])
    assert shown["bundle"]["digest"] == opened.digest
    assert shown["recipients"] == list(opened.recipients)
    assert [v["config"]["variant"] for v in shown["variants"]] == [v.config.variant for v in opened.variants]
    assert shown["variants"][0]["certificate"]["accuracy"]["value"] == 0.9137
    assert _json(capsys, "inspect", path, "--sbom") == opened.sbom
    [certificate] = _json(capsys, "inspect", path, "--certificate", opened.variants[1].config.variant)
    assert certificate["variant"] == opened.variants[1].config.variant


def test_verify_with_and_without_the_sealing_key(
    path: Path, ring: KeyRing, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _json(capsys, "verify", path)["files_checked"] == 0
    assert _json(capsys, "verify", path, "--key", ring.recipient_private)["files_checked"] == 9
    assert cli.main(["verify", str(path)]) == 0
    assert "were not decrypted" in capsys.readouterr().out
    assert cli.main(["verify", str(path), "--trust", str(ring.builder_public)]) == 0
    assert "verified" in capsys.readouterr().out


def test_wrong_and_missing_keys_are_one_line(
    path: Path,
    ring: KeyRing,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = KeyRing.at(tmp_path / "other")
    other.ensure()
    assert "only" in _fails(capsys, "verify", path, "--trust", other.builder_public)[0]
    assert "sealed to" in _fails(capsys, "verify", path, "--key", other.recipient_private)[0]
    assert "cannot read key" in _fails(capsys, "verify", path, "--trust", tmp_path / "absent")[0]
    assert "public key" in _fails(capsys, "inspect", path, "--trust", ring.builder_private)[0]
    assert "private key" in _fails(capsys, "verify", path, "--key", ring.recipient_public)[0]
    monkeypatch.setenv("EDGEKIT_KEYS", str(tmp_path / "none"))
    assert "--trust" in _fails(capsys, "inspect", path)[1]


def test_truncated_edited_and_absent_bundles(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = path.read_bytes()
    for edited in (data[:-512], data[:100], data.replace(b"generic", b"genetic", 1)):
        path.write_bytes(edited)
        for command in ("verify", "inspect"):
            _fails(capsys, command, path)
    path.unlink()
    assert "no such file" in _fails(capsys, "inspect", path)[0]


def test_import_from_an_archive(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.edgekit"
    assert _json(capsys, "verify", path, "--import-to", out)["verified"]
    assert out.read_bytes() == path.read_bytes()
