"""Archives of other tools, without the tools: what `from_oci` takes and what it refuses."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.errors import BundleError, FormatError
from tests.attacks.forge import Forge
from tests.support.bundles import Keys, tiny_bundle

KEYS = Keys()
TRUSTED = [KEYS.signer.public()]
Items = list[tuple[tarfile.TarInfo, bytes]]


def _items(data: bytes) -> Items:
    """A tar as Docker's tools write it: folders, prefixes, times, a rewritten index.json."""
    folder = tarfile.TarInfo("blobs")
    folder.type = tarfile.DIRTYPE
    items: Items = [(folder, b"")]
    for name, content in Forge(data).files().items():
        if name == "index.json":
            listed = json.loads(content)
            listed["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "1"}
            content = json.dumps(listed, indent=2).encode()
        items.append((tarfile.TarInfo(f"./{name}"), content))
    return items


def _write(path: Path, items: Items) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in items:
            info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return path


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def _index(items: Items, content: bytes) -> Items:
    return [(i, content if i.name.endswith("index.json") else c) for i, c in items]


EDITS: dict[str, Callable[[Items], Items]] = {
    "symbolic link": lambda i: [*i, (_info("blobs/sha256/" + "0" * 64, tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "hard link": lambda i: [*i, (_info("blobs/sha256/" + "0" * 64, tarfile.LNKTYPE, "./index.json"), b"")],
    "device": lambda i: [*i, (_info("blobs", tarfile.CHRTYPE), b"")],
    "path": lambda i: [*i, (_info("../evil"), b"x")],
    "absolute": lambda i: [*i, (_info("/evil"), b"x")],
    "stranger": lambda i: [*i, (_info("manifest.json"), b"x")],
    "blob twice": lambda i: [*i, i[1]],
    "index twice": lambda i: [*i, *(x for x in i if x[0].name.endswith("index.json"))],
    "no index": lambda i: [x for x in i if not x[0].name.endswith("index.json")],
    "blob missing": lambda i: [i[0], *i[2:]],
    "blob added": lambda i: [*i, (_info("blobs/sha256/" + "0" * 64), b"x")],
    "index is rubbish": lambda i: _index(i, b"\xff"),
    "index is a list": lambda i: _index(i, b"[]"),
    "index lists nothing": lambda i: _index(i, b'{"manifests":[]}'),
    "index lists a number": lambda i: _index(i, b'{"manifests":[1]}'),
    "index lists a path": lambda i: _index(
        i, b'{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"../x"}]}'
    ),
    "index is huge": lambda i: _index(i, b" " * 100_000),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path, keys=KEYS)[0]


def test_a_foreign_archive_becomes_the_same_file(path: Path, tmp_path: Path) -> None:
    foreign = _write(tmp_path / "foreign.tar", _items(path.read_bytes()))
    with pytest.raises(FormatError, match="not an edgekit bundle"):
        bundle.open(foreign, TRUSTED)
    out = tmp_path / "out.edgekit"
    assert bundle.from_oci(foreign, out, TRUSTED).digest == bundle.open(path, TRUSTED).digest
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", EDITS)
def test_what_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    foreign = _write(tmp_path / "foreign.tar", EDITS[name](_items(path.read_bytes())))
    with pytest.raises(BundleError):
        bundle.from_oci(foreign, tmp_path / "out.edgekit", TRUSTED)
    assert not (tmp_path / "out.edgekit").exists()


def test_truncated_and_rubbish_archives(path: Path, tmp_path: Path) -> None:
    foreign = _write(tmp_path / "foreign.tar", _items(path.read_bytes()))
    data = foreign.read_bytes()
    end = len(data.rstrip(b"\0"))  # another tool's padding after the last member is its own business
    for edited in [b"", b"x" * 3000, *(data[:size] for size in range(300, end, 1777))]:
        foreign.write_bytes(edited)
        with pytest.raises(BundleError):
            bundle.from_oci(foreign, tmp_path / "out.edgekit", TRUSTED)


def test_a_folder_without_a_layout(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no index\.json"):
        bundle.from_oci(tmp_path, tmp_path / "out.edgekit", TRUSTED)
