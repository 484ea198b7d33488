"""Edited bundles are refused: thousands of them, each with a BundleError and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import bundle
from edgekit.bundle.model import ReleaseInfo
from edgekit.crypto import streaming
from edgekit.crypto.keys import SealingKey, SigningKey
from edgekit.errors import BundleError, DecryptError, DigestError, FormatError, SignatureError
from tests.attacks import archive_cases, document_cases
from tests.attacks.forge import Forge
from tests.support.bundles import INFO, Keys, make_config, make_variant, two_variants

KEYS = Keys()
STRANGER = SigningKey.generate()
TRUSTED = [KEYS.signer.public()]
Case = tuple[str, bytes]


@functools.cache
def _bundle(version: str = "1.0.0", encrypt: bool = True) -> bytes:
    data, _ = bundle.to_bytes(
        ReleaseInfo(INFO.name, version),
        two_variants(),
        signer=KEYS.signer,
        recipients=[KEYS.recipient.public()],
        encrypt=encrypt,
    )
    return bytes(data)


def refused(name: str, data: bytes) -> BundleError:
    """The error with which `data` is refused; anything else fails the test."""
    try:
        bundle.open(data, TRUSTED)
    except BundleError as exc:
        assert type(exc) in (FormatError, SignatureError, DigestError), f"{name}: {exc!r}"
        assert exc.message, name
        assert "\n" not in exc.message, name
        return exc
    except Exception as exc:
        raise AssertionError(f"{name}: not a BundleError but {exc!r}") from exc
    raise AssertionError(f"{name}: accepted")


def _unsigned_lies() -> Iterator[Case]:
    """Documents changed, the old signature kept, every digest put right."""
    for variant in (0, 1):
        for edit in document_cases.meaningful():
            yield edit[0], document_cases.apply(_forge(), edit, variant).data()
    for edit in document_cases.malformed():
        yield edit[0], document_cases.apply(_forge(), edit).data()
    for name, change in document_cases.statements():
        yield f"statement: {name}", _forge().statement(change).data()


def _stranger_signs() -> Iterator[Case]:
    """The same, perfectly signed by somebody else."""
    yield "an honest copy", _forge().statement(lambda _: None, STRANGER).data()
    yield "both sign", _forge().statement(lambda _: None, STRANGER, KEYS.signer).data()
    for edit in document_cases.meaningful():
        yield edit[0], document_cases.apply(_forge(), edit).resigned(STRANGER).data()


def _builder_errs() -> Iterator[Case]:
    """Malformed documents under a trusted signature: refused too, and never a crash."""
    for edit in document_cases.malformed():
        yield edit[0], document_cases.apply(_forge(), edit).resigned(KEYS.signer).data()
    for name, change in document_cases.statements():
        yield f"statement: {name}", _forge().statement(change, KEYS.signer).data()


def _indexes() -> Iterator[Case]:
    for name, change in document_cases.indexes():
        yield f"index: {name}", _forge().edit(_forge().index, change).data()
    manifest = _forge().find("signature manifest")
    for name, change in {
        "no subject": document_cases.drop("subject"),
        "other subject": document_cases.put("subject", "digest", value="sha256:" + "0" * 64),
        "annotated": document_cases.put("annotations", value={"a": "b"}),
        "other config": document_cases.put("config", "mediaType", value="application/x"),
        "two layers": document_cases.repeat("layers"),
        "no layers": document_cases.put("layers", value=[]),
        "other layer": document_cases.put("layers", 0, "mediaType", value="application/x"),
    }.items():
        yield f"signature manifest: {name}", _forge().edit(manifest, change).data()


def _forge() -> Forge:
    return Forge(_bundle())


GROUPS: dict[str, Callable[[], Iterable[Case]]] = {
    "flips": lambda: archive_cases.flips(_bundle()),
    "flips, not encrypted": lambda: archive_cases.flips(_bundle(encrypt=False)),
    "cuts": lambda: archive_cases.cuts(_bundle()),
    "extensions": lambda: archive_cases.extensions(_bundle()),
    "members": lambda: archive_cases.members(_bundle()),
    "headers": lambda: archive_cases.headers(_bundle()),
    "blobs of another release": lambda: archive_cases.blob_swaps(_bundle(), _bundle("2.0.0")),
    "documents, not signed": _unsigned_lies,
    "documents, signed by a stranger": _stranger_signs,
    "malformed, signed by the builder": _builder_errs,
    "indexes": _indexes,
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_edit_is_refused(group: str) -> None:
    original = {_bundle(), _bundle(encrypt=False)}
    for name, data in GROUPS[group]():
        assert data not in original, f"{name} changes nothing"
        refused(name, data)


def test_there_are_thousands_of_different_cases() -> None:
    cases = {hash(data) for group in GROUPS.values() for _, data in group()}
    assert len(cases) >= 4000


def test_the_unedited_bundle_is_accepted() -> None:
    for encrypt in (True, False):
        assert bundle.open(_bundle(encrypt=encrypt), TRUSTED).info.name == INFO.name
    assert bundle.open(_forge().resigned(KEYS.signer).data(), TRUSTED).digest


def test_a_stranger_is_named_as_such() -> None:
    for name, data in _stranger_signs():
        assert isinstance(refused(name, data), SignatureError), name
    with pytest.raises(SignatureError):
        bundle.open(_bundle(), [])


def test_an_unknown_version_is_named_as_such() -> None:
    for version in document_cases.WRONG_VERSIONS[:4]:
        change = document_cases.put("predicate", "bundle_version", value=version)
        error = refused(str(version), _forge().statement(change, KEYS.signer).data())
        assert "bundle version" in error.message
        assert "update edgekit" in error.hint


_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "copy", "block"]),
        st.integers(0, 1 << 20),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(_EDITS)
def test_random_edits_are_refused(edits: list[tuple[str, int, int, bytes]]) -> None:
    data = bytearray(_bundle())
    for kind, a, b, content in edits:
        at, other = a % (len(data) + 1), b % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << (b % 8)
        elif kind == "set":
            data[at : at + len(content)] = content
        elif kind == "cut":
            del data[min(at, other) : max(at, other)]
        elif kind == "insert":
            data[at:at] = content
        elif kind == "copy":
            data[at : at + 512] = data[other : other + 512]
        elif kind == "block":
            at, other = at // 512 * 512, other // 512 * 512
            data[at : at + 512], data[other : other + 512] = data[other : other + 512], data[at : at + 512]
    if bytes(data) != _bundle():
        refused("random", bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4096))
def test_rubbish_is_refused(data: bytes) -> None:
    refused("rubbish", data)


def test_another_recipient_cannot_read() -> None:
    opened = bundle.open(_bundle(), TRUSTED)
    for stranger in (SealingKey.generate(), SealingKey.generate("MLKEM768_X25519")):
        with pytest.raises(DecryptError, match="sealed to"):
            opened.content_key(stranger)
    for key in (None, bytes(32)):
        for entry in opened.variants:
            with pytest.raises(DecryptError):
                opened.read(entry, key)
            with pytest.raises(DecryptError):
                opened.read_golden(entry, key)
    with pytest.raises(DecryptError):
        opened.content_key(KEYS.recipient, b"another purpose")


def test_a_sealed_key_does_not_move_between_releases() -> None:
    """The stranger's bundle names our recipient and carries another release's sealed key."""
    other = Forge(_bundle("2.0.0")).json(Forge(_bundle("2.0.0")).find("release"))["recipients"]
    moved = _forge().edit(_forge().find("release"), document_cases.put("recipients", value=other))
    opened = bundle.open(moved.resigned(KEYS.signer).data(), TRUSTED)
    with pytest.raises(DecryptError):
        opened.content_key(KEYS.recipient)


def test_edited_sealed_keys_are_refused() -> None:
    for value in ("", "AAAA", "%%%", "é", "A" * 10_000):
        change = document_cases.put("recipients", 0, "sealed", value=value)
        forged = _forge().edit(_forge().find("release"), change).resigned(KEYS.signer)
        with pytest.raises(BundleError):
            bundle.open(forged.data(), TRUSTED).content_key(KEYS.recipient)


def _large() -> tuple[Forge, bytes]:
    """A bundle whose model has four segments."""
    model = bytes(range(256)) * 13_000
    data, _ = bundle.to_bytes(
        INFO, [make_variant(model=model)], signer=KEYS.signer, recipients=[KEYS.recipient.public()]
    )
    return Forge(data), model


def test_segments_cannot_be_reordered_even_by_the_signer() -> None:
    forge, model = _large()
    file = forge.find("file")
    whole, one = forge.blobs[file], streaming.SEGMENT_BYTES
    parts = [whole[at : at + one] for at in range(0, len(whole), one)]
    edits = {
        "swapped": [parts[0], parts[2], parts[1], parts[3]],
        "repeated": [parts[0], parts[1], parts[1], parts[3]],
        "flipped": [parts[0], parts[1], parts[2], parts[3][:-1] + bytes([parts[3][-1] ^ 1])],
        "other salt": [whole[:1] + bytes(32) + parts[0][33:], *parts[1:]],
        "other header": [b"\x29" + parts[0][1:], *parts[1:]],
    }
    for name, edited in edits.items():
        forged = forge.replace(file, b"".join(edited))
        refused(name, forged.data())
        opened = bundle.open(forged.resigned(KEYS.signer).data(), TRUSTED)
        with pytest.raises(DecryptError):
            opened.read(opened.variants[0], opened.content_key(KEYS.recipient))
    for name, data in {"cut": b"".join(parts[:3]), "cut inside": whole[:-1], "longer": whole + b"x"}.items():
        refused(name, forge.replace(file, data).resigned(KEYS.signer).data())
    opened = bundle.open(forge.data(), TRUSTED)
    assert opened.read(opened.variants[0], opened.content_key(KEYS.recipient)) == {"model.bin": model}


def test_a_file_decrypts_only_under_its_own_name_and_digest() -> None:
    """Two files of one variant in each other's place, under a trusted signature."""
    variant = make_variant(
        files={"a.bin": b"12345", "b.bin": b"67890"}, config=make_config(files=("a.bin", "b.bin"))
    )
    data, _ = bundle.to_bytes(INFO, [variant], signer=KEYS.signer, recipients=[KEYS.recipient.public()])

    def swap(manifest: dict[str, list[dict[str, object]]]) -> None:
        a, b = manifest["layers"][2:4]
        a["digest"], b["digest"] = b["digest"], a["digest"]

    forge = Forge(data)
    forged = forge.edit(forge.find("variant"), swap).resigned(KEYS.signer)
    opened = bundle.open(forged.data(), TRUSTED)
    with pytest.raises(DecryptError):
        opened.read(opened.variants[0], opened.content_key(KEYS.recipient))
