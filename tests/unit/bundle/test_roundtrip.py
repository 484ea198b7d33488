"""Write, open, read: what goes in comes out, deterministically, and nothing else is accepted."""

import dataclasses
import tracemalloc
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.bundle import archive, source
from edgekit.bundle.model import EngineRange, GoldenSpec, ReleaseInfo, Variant
from edgekit.crypto import sealing
from edgekit.crypto.keys import SealingKey
from edgekit.errors import DecryptError, DigestError, FormatError, InputError, SystemFault
from tests.support.bundles import INFO, Keys, make_config, make_variant, tiny_bundle, two_variants

KEYS = Keys()
TRUSTED = [KEYS.signer.public()]


def _bytes(*variants: Variant, encrypt: bool = True, info: ReleaseInfo = INFO) -> bytes:
    recipients = [KEYS.recipient.public()]
    data, _ = bundle.to_bytes(
        info, variants or two_variants(), signer=KEYS.signer, recipients=recipients, encrypt=encrypt
    )
    return bytes(data)


@pytest.mark.parametrize("encrypt", [True, False])
def test_everything_comes_back(tmp_path: Path, encrypt: bool) -> None:
    path, _ = tiny_bundle(tmp_path, keys=KEYS, encrypt=encrypt)
    opened = bundle.open(path, TRUSTED)
    assert (opened.info, opened.encrypted, opened.key_id) == (INFO, encrypt, TRUSTED[0].key_id)
    assert opened.size == path.stat().st_size
    key = opened.content_key(KEYS.recipient) if encrypt else None
    for entry, variant in zip(opened.variants, two_variants(), strict=True):
        assert entry.config == variant.config
        assert entry.certificate == variant.certificate
        assert entry.golden == variant.golden
        assert opened.read(entry, key) == variant.files
        assert opened.read_golden(entry, key) == variant.golden_files
    assert opened.recipients == ((KEYS.recipient.public().key_id,) if encrypt else ())


def test_digest_path_and_bytes_agree(tmp_path: Path) -> None:
    path = tmp_path / "b.edgekit"
    digest = bundle.write(path, INFO, two_variants(), signer=KEYS.signer, recipients=[], encrypt=False)
    assert bundle.open(path, TRUSTED).digest == bundle.open(path.read_bytes(), TRUSTED).digest == digest
    assert bundle.open(str(path), TRUSTED).digest == digest
    assert bundle.open(memoryview(path.read_bytes()), TRUSTED).digest == digest


def test_equal_inputs_give_equal_bytes() -> None:
    assert _bytes(encrypt=False) == _bytes(encrypt=False)
    assert _bytes(encrypt=False) != _bytes(encrypt=False, info=dataclasses.replace(INFO, version="1.0.1"))


def test_encryption_changes_ciphertexts_but_no_plaintext_digest() -> None:
    one, two, plain = (bundle.open(_bytes(encrypt=e), TRUSTED) for e in (True, True, False))
    digests = [
        [(b.name, b.plaintext_sha256, b.plaintext_size_bytes) for v in o.variants for b in v.blobs]
        for o in (one, two, plain)
    ]
    assert digests[0] == digests[1] == digests[2]
    assert one.digest != two.digest
    assert not {b.sha256 for v in one.variants for b in v.blobs} & {
        b.sha256 for v in two.variants for b in v.blobs
    }


def test_plaintext_does_not_show_in_an_encrypted_bundle() -> None:
    secret = b"weights that nobody may see"
    variant = make_variant(model=secret)
    assert secret in _bytes(variant, encrypt=False)
    assert secret not in _bytes(variant)


def test_a_file_shared_by_variants_is_stored_once() -> None:
    model = bytes(100_000)
    other = make_variant(make_config(variant="two"), model=model)
    assert len(_bytes(make_variant(model=model), other)) < 150_000


def test_the_content_key_is_sealed_to_every_recipient_and_resealed_to_a_device() -> None:
    others = [SealingKey.generate(), SealingKey.generate("MLKEM768_X25519")]
    data, _ = bundle.to_bytes(
        INFO, two_variants(), signer=KEYS.signer, recipients=[key.public() for key in others]
    )
    opened = bundle.open(data, TRUSTED)
    keys = {opened.content_key(key) for key in others}
    assert len(keys) == 1
    device, info = SealingKey.generate(), sealing.assignment_info("default", "dev-1", opened.digest)
    sealed = opened.reseal(keys.copy().pop(), device.public(), info)
    assert sealing.unseal(sealed, device, info) in keys
    with pytest.raises(DecryptError):
        opened.content_key(KEYS.recipient)


def test_an_encrypted_bundle_needs_a_recipient() -> None:
    with pytest.raises(FormatError, match="recipient"):
        bundle.to_bytes(INFO, two_variants(), signer=KEYS.signer, recipients=[])


def test_empty_and_large_files() -> None:
    files = {"model.bin": b"", "weights/part.bin": bytes(range(256)) * 10_000}
    config = make_config(files=tuple(files))
    opened = bundle.open(_bytes(make_variant(config, files=files)), TRUSTED)
    assert opened.read(opened.variants[0], opened.content_key(KEYS.recipient)) == files


BAD: dict[str, Variant] = {
    "undeclared file": make_variant(files={"other.bin": b"x"}),
    "missing file": make_variant(files={}),
    "path": make_variant(make_config(files=("../x",))),
    "absolute": make_variant(make_config(files=("/x",))),
    "case": make_variant(make_config(files=("A.bin", "a.bin"))),
    "variant name": make_variant(make_config(variant="a/b")),
    "no outputs": make_variant(make_config(outputs=())),
    "golden file missing": make_variant(golden_files={"inputs/x": b""}),
    "golden file unknown": make_variant(
        golden=GoldenSpec(1, (), (), 0.0, 0.0), golden_files={"inputs/x": b""}
    ),
    "certificate of another": dataclasses.replace(
        make_variant(), certificate=make_variant(make_config(variant="b")).certificate
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.edgekit"
    path.write_bytes(b"before")
    with pytest.raises(FormatError):
        bundle.write(path, INFO, [BAD[name]], signer=KEYS.signer, recipients=[], encrypt=False)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_no_and_repeated_variants_are_not_written() -> None:
    for variants in ([], [make_variant(), make_variant()]):
        with pytest.raises(FormatError):
            bundle.to_bytes(INFO, variants, signer=KEYS.signer, recipients=[], encrypt=False)


@pytest.mark.parametrize("version", ["", "a\nb", "x" * 201, "\x1b[31m"])
def test_bad_versions_are_not_written(version: str) -> None:
    with pytest.raises(FormatError, match="release version"):
        _bytes(info=ReleaseInfo("a", version))


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(SystemFault) as caught:
        bundle.write(
            Path("/proc/b.edgekit"), INFO, two_variants(), signer=KEYS.signer, recipients=[], encrypt=False
        )
    assert "/proc/b.edgekit" in caught.value.message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        bundle.open(tmp_path / "absent", TRUSTED)
    with pytest.raises(InputError, match="not a file"):
        bundle.open(tmp_path, TRUSTED)
    for content in (b"", b"x" * 5000, bytes(10_240)):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(FormatError):
            bundle.open(tmp_path / "f", TRUSTED)


def test_a_file_replaced_after_opening_is_noticed(tmp_path: Path) -> None:
    variants = [make_variant(model=b"quite unmistakable")]
    path, _ = tiny_bundle(tmp_path, keys=KEYS, encrypt=False, variants=variants)
    opened = bundle.open(path, TRUSTED)
    data = bytearray(path.read_bytes())
    data[data.index(b"quite unmistakable")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestError):
        opened.read(opened.variants[0])
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="shorter"):
        opened.read(opened.variants[0])


def test_a_giant_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A sparse file over the limit, and a member that claims to fill it."""
    giant = tmp_path / "giant"
    with giant.open("wb") as file:
        file.truncate(source.MAX_BUNDLE_BYTES + 512)
    claims = tmp_path / "claims"
    with claims.open("wb") as file:
        size = source.MAX_BUNDLE_BYTES - 4096
        file.write(archive.header(archive.INDEX_NAME, size))
        file.seek(512 + size)
        file.write(archive.header(archive.LAYOUT_NAME, len(archive.LAYOUT)))
        file.write(archive.LAYOUT.ljust(512, b"\0") + bytes(1024))
    tracemalloc.start()
    try:
        for path in (giant, claims):
            with pytest.raises(FormatError, match="more than the"):
                bundle.open(path, TRUSTED)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_provenance_names_the_source() -> None:
    provenance = bundle.open(_bytes(), TRUSTED).provenance
    assert provenance.builder.name == "edgekit-toolkit"
    assert [v.source_sha256 for v in provenance.variants] == ["5" * 64] * 2
    assert provenance.release == "tiny:1.0.0"


def test_engine_ranges_travel() -> None:
    config = make_config(engine=EngineRange("onnxruntime", "1.23", "2"))
    opened = bundle.open(_bytes(make_variant(config)), TRUSTED)
    assert opened.variants[0].config.engine == EngineRange("onnxruntime", "1.23", "2")
