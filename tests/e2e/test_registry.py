"""Through a real registry and back: skopeo and Debian's docker-registry, both required."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.errors import BundleError, FormatError, SignatureError
from tests.support.bundles import Keys, make_config, make_variant, tiny_bundle, two_variants
from tests.support.ports import free_port

KEYS = Keys()
TRUSTED = [KEYS.signer.public()]


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("skopeo", "docker-registry") if not shutil.which(tool)]
    assert not missing, (
        f"{missing} missing: `make test` installs them, or apt-get install {' '.join(missing)}"
    )


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running registry, host:port."""
    folder = tmp_path_factory.mktemp("registry")
    for _ in range(5):
        address = f"127.0.0.1:{free_port()}"
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": address},
        }
        (folder / "config.yml").write_text(json.dumps(config))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
            )
        try:
            if _answers(f"http://{address}/v2/", process):
                yield address
                return
        finally:
            process.terminate()
            process.wait(30)
    pytest.fail(f"the registry did not start: {(folder / 'log').read_text()}")


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    for _ in range(300):
        if process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _skopeo(*arguments: str) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def _push(source: str, target: str) -> None:
    _skopeo("copy", "--all", "--dest-tls-verify=false", source, f"docker://{target}")


def _pull(source: str, target: str) -> None:
    _skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{source}", target)


@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize("form", ["oci-archive", "oci"])
def test_a_bundle_survives_a_registry(tmp_path: Path, registry: str, form: str, encrypt: bool) -> None:
    """Pushed and pulled, it is byte for byte the file that was pushed, and still decrypts."""
    large = make_variant(make_config(variant="large"), model=bytes(3_000_000))
    path, _ = tiny_bundle(tmp_path, keys=KEYS, variants=[*two_variants(), large], encrypt=encrypt)
    name = f"{registry}/models/{form}-{str(encrypt).lower()}:1.0.0"
    _push(f"oci-archive:{path}", name)
    back = tmp_path / "back"
    _pull(name, f"{form}:{back}")
    opened = bundle.from_oci(back, tmp_path / "back.edgekit", TRUSTED)
    assert (tmp_path / "back.edgekit").read_bytes() == path.read_bytes()
    assert opened.digest == bundle.open(path, TRUSTED).digest
    key = opened.content_key(KEYS.recipient) if encrypt else None
    assert opened.read(opened.variants[2], key) == large.files
    assert opened.read_golden(opened.variants[1], key) == two_variants()[1].golden_files


def test_the_registry_knows_it_by_the_bundle_digest(tmp_path: Path, registry: str) -> None:
    path, _ = tiny_bundle(tmp_path, keys=KEYS)
    _push(f"oci-archive:{path}", f"{registry}/models/digest:1")
    digest = bundle.open(path, TRUSTED).digest
    _pull(f"{registry}/models/digest@{digest}", f"oci-archive:{tmp_path / 'back'}")
    assert bundle.from_oci(tmp_path / "back", tmp_path / "back.edgekit", TRUSTED).digest == digest


def test_between_two_registries_nothing_is_lost(tmp_path: Path, registry: str) -> None:
    path, _ = tiny_bundle(tmp_path, keys=KEYS)
    _push(f"oci-archive:{path}", f"{registry}/models/first:1")
    _skopeo(
        "copy",
        "--all",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        f"docker://{registry}/models/first:1",
        f"docker://{registry}/mirror/second:2",
    )
    _pull(f"{registry}/mirror/second:2", f"oci-archive:{tmp_path / 'back'}")
    bundle.from_oci(tmp_path / "back", tmp_path / "back.edgekit", TRUSTED)
    assert (tmp_path / "back.edgekit").read_bytes() == path.read_bytes()


def test_what_came_back_must_still_be_trusted_and_whole(tmp_path: Path, registry: str) -> None:
    path, _ = tiny_bundle(tmp_path, keys=KEYS)
    _push(f"oci-archive:{path}", f"{registry}/models/refused:1")
    _pull(f"{registry}/models/refused:1", f"oci:{tmp_path / 'layout'}")
    out = tmp_path / "out.edgekit"
    with pytest.raises(SignatureError):
        bundle.from_oci(tmp_path / "layout", out, [Keys().signer.public()])
    blobs = sorted((tmp_path / "layout/blobs/sha256").iterdir())
    for blob in blobs:
        content = blob.read_bytes()
        for edited in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
            blob.unlink()
            if edited is not None:
                blob.write_bytes(edited)
            with pytest.raises(BundleError):
                bundle.from_oci(tmp_path / "layout", out, TRUSTED)
            blob.write_bytes(content)
    assert not out.exists()
    assert bundle.from_oci(tmp_path / "layout", out, TRUSTED).info.name == "tiny"


def test_one_platform_alone_is_not_a_bundle(tmp_path: Path, registry: str) -> None:
    """Without --all skopeo takes one variant and drops the signature; the message says so."""
    path, _ = tiny_bundle(tmp_path, keys=KEYS)
    _push(f"oci-archive:{path}", f"{registry}/models/single:1")
    arguments = ("--override-arch", "arm64", "--override-os", "linux", "copy", "--src-tls-verify=false")
    _skopeo(*arguments, f"docker://{registry}/models/single:1", f"oci-archive:{tmp_path / 'one'}")
    with pytest.raises(FormatError, match="lists 0 bundles") as caught:
        bundle.from_oci(tmp_path / "one", tmp_path / "out.edgekit", TRUSTED)
    assert "--all" in caught.value.hint
