"""A bundle of version 1, made once by make.py, opens for ever."""

import hashlib
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import SealingKey
from tests.golden import make
from tests.support.bundles import two_variants

HERE = Path(__file__).parent / "v1"
SHA256 = "5cae34518da2ebabe30c949c3f7ef9939428918944246a7566a95802b106863d"
DIGEST = "sha256:d4bdb071b5c5b33e79c2b8f98c007f1f7f91a83badc43e2f4fcda3649ae66d37"


def test_the_file_itself_never_changes() -> None:
    assert hashlib.sha256((HERE / "tiny.edgekit").read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("recipient", ["recipient.pem", "hybrid.pem"])
def test_it_verifies_and_decrypts(recipient: str) -> None:
    opened = bundle.open(HERE / "tiny.edgekit", [KeyRing.at(HERE).verify_key()])
    assert opened.digest == DIGEST
    assert (opened.info.name, opened.info.version) == ("tiny", "1.0.0")
    assert [entry.config.variant for entry in opened.variants] == [
        "generic-cpu.reference.fp32",
        "raspberry-pi-5.reference.int8",
    ]
    key = opened.content_key(SealingKey.load(HERE / recipient))
    first, second = opened.variants
    assert opened.read(first, key) == {"model.bin": b"weights"}
    assert opened.read(second, key) == {"model.bin": b"int8", "weights/part.bin": b"\x01\x02"}
    assert opened.read_golden(first, key) == {
        "inputs/x": bytes(32),
        "outputs/y": bytes(16),
        "reference": bytes(16),
    }
    assert first.certificate.accuracy.value == 0.9137
    assert opened.sbom["bomFormat"] == "CycloneDX"


def test_the_script_that_made_it_still_makes_one(tmp_path: Path) -> None:
    make.main(tmp_path)
    opened = bundle.open(tmp_path / "tiny.edgekit", [KeyRing.at(tmp_path).verify_key()])
    assert [entry.config for entry in opened.variants] == [v.config for v in two_variants()]
