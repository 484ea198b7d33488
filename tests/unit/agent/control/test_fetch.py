"""Downloads over real mutual TLS."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, InputError
from edgekit_agent import fetch
from edgekit_agent.fetch import NetworkFault, NoSpace
from tests.support.standin import BundleServer, Identity

DATA = os.urandom(300_000)
PATH = "/v1/bundles/x"


class Place:
    def __init__(self, folder: Path) -> None:
        self.identity = Identity(folder / "identity")
        self.identity.device("d", folder)
        self.server = BundleServer(self.identity)
        self.server.files[PATH] = DATA
        self.to = folder / "b.edgekit"
        self.folder = folder

    def get(self, size: int = len(DATA), path: str = PATH, **certificate: str) -> None:
        given = certificate or {"cert": f"{self.folder}/device.pem", "key": f"{self.folder}/device.key"}
        context = fetch.tls(f"{self.folder}/ca.pem", **given)
        fetch.download(self.server.url, path, size, self.to, context, lambda: None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.server.close()


def test_download(place: Place) -> None:
    place.get()
    assert place.to.read_bytes() == DATA
    assert sorted(p.name for p in place.folder.glob("b.*")) == ["b.edgekit"]


def test_resumes_where_it_was_cut(place: Place) -> None:
    place.server.cut = 100_000
    for _ in range(3):
        with pytest.raises(NetworkFault):
            place.get()
        assert not place.to.exists()
        place.server.cut = 50_000
    place.server.cut = 0
    place.get()
    assert place.to.read_bytes() == DATA
    assert [asked for _, asked in place.server.requests] == [
        "", "bytes=100000-", "bytes=150000-", "bytes=200000-",
    ]  # fmt: skip


def test_server_without_ranges(place: Place) -> None:
    place.server.cut = 1000
    with pytest.raises(NetworkFault):
        place.get()
    place.server.cut, place.server.ignore_range = 0, True
    place.get()
    assert place.to.read_bytes() == DATA


@pytest.mark.parametrize(
    ("size", "path", "error", "word"),
    [
        (len(DATA) + 1, PATH, InputError, "the assignment says"),
        (len(DATA) - 1, PATH, InputError, "the assignment says"),
        (len(DATA), "/v1/bundles/y", InputError, "has no /v1/bundles/y"),
        (1 << 60, PATH, NoSpace, "no space"),
    ],
)
def test_refused(place: Place, size: int, path: str, error: type[EdgekitError], word: str) -> None:
    with pytest.raises(error, match=word):
        place.get(size, path)
    assert not place.to.exists()


def test_without_a_device_certificate(place: Place) -> None:
    with pytest.raises(NetworkFault):
        place.get(cert="", key="")


def test_another_fleets_server_is_not_trusted(place: Place, tmp_path: Path) -> None:
    other = Identity(tmp_path / "other")
    (tmp_path / "ca.pem").write_bytes(other.ca.certificate_pem)
    with pytest.raises(NetworkFault, match="certificate"):
        place.get()


def test_stopping_keeps_what_arrived(place: Place) -> None:
    class Enough(Exception):
        pass

    calls: list[int] = []

    def keep_going() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Enough

    context = fetch.tls(f"{place.folder}/ca.pem", f"{place.folder}/device.pem", f"{place.folder}/device.key")
    with pytest.raises(Enough):
        fetch.download(place.server.url, PATH, len(DATA), place.to, context, keep_going)
    place.get()
    assert place.to.read_bytes() == DATA and place.server.requests[-1][1]


def test_a_server_that_trickles_cannot_hold_the_download(place: Place) -> None:
    """What arrived is taken at once: between any two pieces the job's deadline is looked at."""

    class Enough(Exception):
        pass

    def keep_going() -> None:
        if (place.folder / "b.edgekit.part").stat().st_size:
            raise Enough

    place.server.cut, place.server.stalled = 10, threading.Event()
    context = fetch.tls(f"{place.folder}/ca.pem", f"{place.folder}/device.pem", f"{place.folder}/device.key")
    try:
        with pytest.raises(Enough):
            fetch.download(place.server.url, PATH, len(DATA), place.to, context, keep_going)
    finally:
        place.server.stalled.set()
