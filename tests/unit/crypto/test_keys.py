import stat
from pathlib import Path

import pytest

from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import Kem, RecipientKey, SealingKey, SigningKey, VerifyKey
from edgekit.errors import InputError, SystemFault

KEMS: tuple[Kem, ...] = ("X25519", "MLKEM768_X25519")


def test_signing_key_survives_a_file(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "k.pem")
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    again = SigningKey.load(tmp_path / "k.pem")
    assert again.public() == key.public()
    assert again.sign(b"m") == key.sign(b"m")
    assert VerifyKey.from_pem(key.public().to_pem()) == key.public()


def test_key_id_is_the_hash_of_the_spki() -> None:
    """RFC 8032 test 1's public key; the id is `openssl pkey -pubin -pubout -outform DER | sha256sum`."""
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert VerifyKey(raw).key_id == "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9"


@pytest.mark.parametrize("kem", KEMS)
def test_sealing_key_survives_a_file(tmp_path: Path, kem: Kem) -> None:
    key = SealingKey.generate(kem)
    key.save(tmp_path / "k.pem")
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    assert SealingKey.load(tmp_path / "k.pem").public() == key.public()
    public = RecipientKey.from_pem(key.public().to_pem())
    assert public == key.public()
    assert public.kem == key.kem == kem
    assert len(public.key_id) == 64


def test_a_recipient_key_has_one_id_however_its_file_is_spelled() -> None:
    public = SealingKey.generate().public()
    loose = b"\n\n" + public.to_pem().replace(b"\n", b"\r\n") + b"\n"
    assert RecipientKey.from_pem(loose) == public


BAD_PEM = {
    "empty": b"",
    "text": b"hello",
    "cut": SigningKey.generate().public().to_pem()[:60],
    "after": SigningKey.generate().public().to_pem() + b"more",
    "rubbish": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "large": b"-----BEGIN PUBLIC KEY-----\n" * 10_000,
    "sealing": SealingKey.generate().public().to_pem(),
    "hybrid": SealingKey.generate("MLKEM768_X25519").public().to_pem(),
}


@pytest.mark.parametrize("name", BAD_PEM)
def test_what_is_no_verify_key_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        VerifyKey.from_pem(BAD_PEM[name])
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(BAD_PEM.keys() - {"sealing", "hybrid"}))
def test_what_is_no_recipient_key_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        RecipientKey.from_pem(BAD_PEM[name])


def test_halves_of_a_hybrid_key_in_the_wrong_order_are_refused() -> None:
    pem = SealingKey.generate("MLKEM768_X25519").public().to_pem()
    cut = pem.index(b"-----BEGIN", 1)
    with pytest.raises(InputError):
        RecipientKey.from_pem(pem[cut:] + pem[:cut])
    with pytest.raises(InputError):
        RecipientKey.from_pem(pem[:cut])


def test_private_keys_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    SealingKey.generate().save(tmp_path / "seal.pem")
    SigningKey.generate().save(tmp_path / "sign.pem")
    with pytest.raises(InputError):
        SigningKey.load(tmp_path / "seal.pem")
    with pytest.raises(InputError):
        SealingKey.load(tmp_path / "sign.pem")
    with pytest.raises(InputError, match="cannot read key"):
        SigningKey.load(tmp_path / "absent.pem")
    (tmp_path / "sign.pub").write_bytes(SigningKey.generate().public().to_pem())
    with pytest.raises(InputError, match="private"):
        SigningKey.load(tmp_path / "sign.pub")


def test_key_ring_makes_keys_once(tmp_path: Path) -> None:
    ring = KeyRing.at(tmp_path / "a" / "keys")
    assert ring.ensure()
    assert not ring.ensure()
    assert ring.signing_key().public() == ring.verify_key()
    assert ring.sealing_key().public() == ring.recipient_key()
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(ring.recipient_private.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="exists already"):
        ring.generate()


def test_key_ring_never_replaces_half_a_pair(tmp_path: Path) -> None:
    ring = KeyRing.at(tmp_path)
    ring.generate("MLKEM768_X25519")
    before = ring.builder_public.read_bytes()
    ring.builder_private.unlink()
    with pytest.raises(InputError, match="is not"):
        ring.ensure()
    assert ring.builder_public.read_bytes() == before


def test_key_ring_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_KEYS", str(tmp_path))
    assert KeyRing.at().folder == tmp_path
    monkeypatch.delenv("EDGEKIT_KEYS")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert KeyRing.at().folder == Path("/x/edgekit/keys")


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemFault):
        KeyRing.at(tmp_path / "file" / "keys").generate()
