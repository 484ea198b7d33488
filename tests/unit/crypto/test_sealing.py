import pytest

from edgekit.crypto import sealing
from edgekit.crypto.keys import Kem, SealingKey
from edgekit.errors import DecryptError

KEMS: tuple[Kem, ...] = ("X25519", "MLKEM768_X25519")
INFO = sealing.release_info("kws", "1.0.0")
SECRET = bytes(range(32))


@pytest.mark.parametrize("kem", KEMS)
def test_only_the_recipient_unseals(kem: Kem) -> None:
    key = SealingKey.generate(kem)
    sealed = sealing.seal(SECRET, key.public(), INFO)
    assert len(sealed) == sealing.SEALED_BYTES[kem]
    assert sealing.unseal(sealed, key, INFO) == SECRET
    for other in KEMS:
        with pytest.raises(DecryptError, match="not sealed to key"):
            sealing.unseal(sealed, SealingKey.generate(other), INFO)


@pytest.mark.parametrize("kem", KEMS)
def test_an_edited_box_does_not_open(kem: Kem) -> None:
    key = SealingKey.generate(kem)
    sealed = sealing.seal(SECRET, key.public(), INFO)
    for at in range(0, len(sealed), 7):
        edited = bytearray(sealed)
        edited[at] ^= 1
        with pytest.raises(DecryptError):
            sealing.unseal(bytes(edited), key, INFO)
    for wrong in (b"", sealed[:-1], sealed + b"\0"):
        with pytest.raises(DecryptError):
            sealing.unseal(wrong, key, INFO)


def test_a_key_sealed_for_one_purpose_does_not_open_for_another() -> None:
    key = SealingKey.generate()
    sealed = sealing.seal(SECRET, key.public(), INFO)
    others = (
        sealing.release_info("kws", "1.0.1"),
        sealing.release_info("kws:1.0", ".0"),
        sealing.assignment_info("default", "kws", "1.0.0"),
        b"",
    )
    for info in others:
        with pytest.raises(DecryptError):
            sealing.unseal(sealed, key, info)


def test_info_strings_cannot_be_confused() -> None:
    found = {
        sealing.release_info("a", "bc"),
        sealing.release_info("ab", "c"),
        sealing.release_info('a","b', "c"),
        sealing.assignment_info("a", "b", "c"),
        sealing.assignment_info("a", "bc", ""),
        sealing.assignment_info("a/b", "c", ""),
    }
    assert len(found) == 6


def test_only_content_keys_are_sealed() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sealing.seal(b"short", SealingKey.generate().public(), INFO)
