"""The stream format, against Google's own Tink in both directions."""

import io
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import proto_keyset_format, secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from edgekit.crypto import streaming
from edgekit.errors import DecryptError

KEY, AAD = bytes(range(32)), b"which file this is"
FIRST = streaming.SEGMENT_BYTES - streaming.HEADER_BYTES - streaming.TAG_BYTES
FULL = streaming.SEGMENT_BYTES - streaming.TAG_BYTES
SIZES = (0, 1, 1000, FIRST - 1, FIRST, FIRST + 1, FIRST + FULL - 1, FIRST + FULL, FIRST + FULL + 1)


def _plain(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(scope="module")
def tink() -> streaming_aead.StreamingAead:
    streaming_aead.register()
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    parameters = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKeyFormat.FromString(template.value).params
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(key_value=KEY, params=parameters)
    data = tink_pb2.KeyData(
        type_url=template.type_url,
        value=key.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    entry = tink_pb2.Keyset.Key(
        key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW
    )
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[entry])
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    assert parameters.hkdf_hash_type == common_pb2.SHA256
    return handle.primitive(streaming_aead.StreamingAead)


class _Kept(io.BytesIO):
    """Tink closes its destination; the bytes are wanted afterwards."""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", SIZES)
def test_tink_reads_what_we_write(tink: streaming_aead.StreamingAead, size: int) -> None:
    ciphertext = streaming.encrypt(KEY, _plain(size), AAD)
    assert tink.new_decrypting_stream(io.BytesIO(ciphertext), AAD).read() == _plain(size)


@pytest.mark.parametrize("size", SIZES)
def test_we_read_what_tink_writes(tink: streaming_aead.StreamingAead, size: int) -> None:
    file = _Kept()
    with tink.new_encrypting_stream(file, AAD) as stream:
        stream.write(_plain(size))
    ciphertext = file.getvalue()
    assert streaming.plaintext_size(len(ciphertext)) == size
    assert streaming.decrypt(KEY, ciphertext, AAD, plaintext_size=size) == _plain(size)


@given(st.integers(0, 1 << 36))
def test_sizes_are_inverse(size: int) -> None:
    assert streaming.plaintext_size(streaming.ciphertext_size(size)) == size


@pytest.mark.parametrize("size", [0, 40, 55, 1 + (1 << 20), (1 << 20) + 16])
def test_sizes_that_no_ciphertext_has(size: int) -> None:
    with pytest.raises(DecryptError):
        streaming.plaintext_size(size)


@settings(deadline=None)
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    ciphertext = bytearray(streaming.encrypt(KEY, b"some weights", AAD))
    ciphertext[data.draw(st.integers(0, len(ciphertext) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DecryptError):
        streaming.decrypt(KEY, ciphertext, AAD, plaintext_size=12)


def test_another_key_or_purpose_is_refused() -> None:
    ciphertext = streaming.encrypt(KEY, b"some weights", AAD)
    for key, aad in ((bytes(32), AAD), (KEY, b"another file"), (KEY, b"")):
        with pytest.raises(DecryptError):
            streaming.decrypt(key, ciphertext, aad, plaintext_size=12)


def test_reordered_repeated_dropped_and_cut_segments_are_refused() -> None:
    size = FIRST + 2 * FULL + 5
    whole = streaming.encrypt(KEY, _plain(size), AAD)
    one = 1 << 20
    parts = [whole[at : at + one] for at in range(0, len(whole), one)]
    header, head = parts[0][: streaming.HEADER_BYTES], parts[0][streaming.HEADER_BYTES :]
    cases = {
        "swapped": parts[0] + parts[2] + parts[1] + parts[3],
        "repeated": parts[0] + parts[1] + parts[1] + parts[3],
        "dropped": parts[0] + parts[2] + parts[3],
        "cut at a segment": parts[0] + parts[1] + parts[2],
        "cut inside": whole[:-1],
        "header only": header,
        "empty": b"",
        "extended": whole + b"\0",
        "first last": header + parts[1][: len(head)] + head + parts[1][len(head) :] + parts[2] + parts[3],
    }
    for name, edited in cases.items():
        for declared in {size, _declared(len(edited))} - {-1}:
            with pytest.raises(DecryptError):
                streaming.decrypt(KEY, edited, AAD, plaintext_size=declared)
                pytest.fail(f"{name} was accepted")


def _declared(size: int) -> int:
    try:
        return streaming.plaintext_size(size)
    except DecryptError:
        return -1


def test_a_huge_declared_size_is_refused_before_memory_is_taken() -> None:
    ciphertext = streaming.encrypt(KEY, b"x", AAD)
    tracemalloc.start()
    try:
        for declared in (1 << 34, 1 << 60, -1):
            with pytest.raises(DecryptError, match="cannot hold"):
                streaming.decrypt(KEY, ciphertext, AAD, plaintext_size=declared)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_salt_and_nonce_are_fresh() -> None:
    headers = {streaming.encrypt(KEY, b"", AAD)[: streaming.HEADER_BYTES] for _ in range(64)}
    assert len(headers) == 64
