import base64
import json
from typing import Any

import pytest

from edgekit import codec
from edgekit.crypto import dsse
from edgekit.crypto.keys import SigningKey
from edgekit.errors import SignatureError

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
TYPE = "application/vnd.test+json"
ENVELOPE = dsse.sign(TYPE, b'{"a":1}', [KEY])


def test_pae_is_the_specification_example() -> None:
    """Test vector of the DSSE v1 protocol document."""
    assert (
        dsse.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_what_was_signed_comes_back() -> None:
    assert dsse.verify(ENVELOPE, TYPE, [OTHER.public(), KEY.public()]) == b'{"a":1}'
    assert dsse.sign(TYPE, b'{"a":1}', [KEY]) == ENVELOPE


def test_details_name_the_trusted_signers() -> None:
    both = dsse.sign(TYPE, b"x", [KEY, OTHER])
    found = dsse.verify_detailed(both, TYPE, [OTHER.public()])
    assert (found.key_ids, found.signatures) == ((OTHER.public().key_id,), 2)


def test_another_signer_is_refused_by_name() -> None:
    with pytest.raises(SignatureError) as caught:
        dsse.verify(ENVELOPE, TYPE, [OTHER.public()])
    assert KEY.public().key_id[:16] in caught.value.message
    assert OTHER.public().key_id[:16] in caught.value.message
    with pytest.raises(SignatureError):
        dsse.verify(ENVELOPE, TYPE, [])


def test_a_payload_of_another_type_is_refused() -> None:
    with pytest.raises(SignatureError, match="payload type"):
        dsse.verify(ENVELOPE, "application/vnd.other+json", [KEY.public()])


def _changed(**changes: Any) -> bytes:
    return codec.to_json({**json.loads(ENVELOPE), **changes})


SIGNATURE = json.loads(ENVELOPE)["signatures"][0]
EDITED = {
    "payload": _changed(payload=base64.b64encode(b'{"a":2}').decode()),
    "type": _changed(payloadType="application/vnd.tests+json"),
    "no signature": _changed(signatures=[]),
    "twice": _changed(signatures=[SIGNATURE, SIGNATURE]),
    "many": _changed(signatures=[SIGNATURE] * 9),
    "unknown field": _changed(extra=1),
    "wrong type": _changed(signatures="x"),
    "spaces": ENVELOPE.replace(b",", b", ", 1),
    "trailing": ENVELOPE + b"\n",
    "duplicate key": ENVELOPE.replace(b"{", b'{"payload":"",', 1),
    "loose base64": _changed(payload=base64.b64encode(b'{"a":1}').decode() + "\n"),
    "noncanonical base64": _changed(payload=base64.b64encode(b'{"a":1}').decode()[:-3] + "R=="),
    "not base64": _changed(payload="%%%%"),
    "not ascii base64": _changed(payload="\u00e9"),
    "surrogate": ENVELOPE.replace(b"vnd.test", b"vnd.\\ud800"),
    "not json": b"\xff\xfe",
    "empty": b"",
    "deep": b"[" * 100_000,
    "large": b'"' + b"x" * dsse.MAX_ENVELOPE_BYTES + b'"',
    "signature": _changed(signatures=[{**SIGNATURE, "sig": base64.b64encode(bytes(64)).decode()}]),
    "short signature": _changed(signatures=[{**SIGNATURE, "sig": "AAAA"}]),
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_envelope_is_refused(name: str) -> None:
    with pytest.raises(SignatureError):
        dsse.verify(EDITED[name], TYPE, [KEY.public()])


def test_every_byte_counts() -> None:
    for at in range(len(ENVELOPE)):
        for bit in (1, 0x20):
            edited = bytearray(ENVELOPE)
            edited[at] ^= bit
            with pytest.raises(SignatureError):
                dsse.verify(bytes(edited), TYPE, [KEY.public()])


def test_a_bad_signature_by_a_trusted_key_is_not_outvoted_by_a_good_one() -> None:
    envelope = json.loads(dsse.sign(TYPE, b"x", [KEY, OTHER]))
    envelope["signatures"][0]["sig"] = envelope["signatures"][1]["sig"]
    with pytest.raises(SignatureError, match="does not hold"):
        dsse.verify(codec.to_json(envelope), TYPE, [KEY.public(), OTHER.public()])
