"""Which assignments a device takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgekit import codec, wire
from edgekit.crypto import dsse
from edgekit.crypto.keys import SigningKey
from edgekit.errors import EdgekitError, InputError, SignatureError
from edgekit.wire import JobNotify
from edgekit_agent.intake import verified
from tests.unit.agent.control.test_stages import ASSIGNMENT

KEY = SigningKey.generate()


def notify(
    key: SigningKey = KEY, job: str = "", kind: str = wire.ASSIGNMENT_TYPE, **changes: Any
) -> JobNotify:
    assignment = dataclasses.replace(ASSIGNMENT, counter=5, **changes)
    envelope = dsse.sign(kind, codec.to_json(assignment), [key])
    return JobNotify(job or assignment.job, envelope.decode())


def take(message: JobNotify, floor: int = 4) -> wire.Assignment:
    return verified(message, KEY.public(), "d", "default", floor)


def test_good_one() -> None:
    assert take(notify()) == dataclasses.replace(ASSIGNMENT, counter=5)


@pytest.mark.parametrize(
    ("message", "floor", "error", "word"),
    [
        (notify(SigningKey.generate()), 4, SignatureError, "signed by"),
        (notify(kind="application/other"), 4, SignatureError, "payload type"),
        (notify(device="e"), 4, SignatureError, "default/e"),
        (notify(tenant="t"), 4, SignatureError, "t/d"),
        (notify(job="another"), 4, SignatureError, "belongs to job"),
        (notify(), 5, SignatureError, "older"),
        (notify(), 6, SignatureError, "older"),
        (notify(bundle_digest="sha256:../../x"), 4, InputError, "out of range"),
        (notify(bundle_size_bytes=-1), 4, InputError, "out of range"),
        (notify(deadline_s=float(10**9)), 4, InputError, "out of range"),
        (JobNotify("job"), 4, SignatureError, "not valid JSON"),
        (JobNotify("job", "{}"), 4, SignatureError, "envelope"),
    ],
)
def test_refused(message: JobNotify, floor: int, error: type[EdgekitError], word: str) -> None:
    with pytest.raises(error, match=word):
        take(message, floor)


@pytest.mark.parametrize("position", range(0, 600, 23))
def test_any_edit_is_noticed(position: int) -> None:
    message = notify()
    text = message.assignment
    at = position % len(text)
    edited = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    with pytest.raises(EdgekitError):
        take(dataclasses.replace(message, assignment=edited))
