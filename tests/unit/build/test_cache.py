from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.build.cache import Cache, default_folder, key_of, pack, unpack

FILES = {"model.onnx": b"weights" * 9, "inputs/a b\n": b"", "out": bytes(range(256))}
ENTRIES = st.dictionaries(st.text(max_size=9), st.binary(max_size=40), min_size=1, max_size=4)


def entry(folder: Path) -> Path:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "not" / "yet" / "there"), key_of("build", {"model": "m"})
    assert cache.get(key) is None
    cache.put(key, FILES)
    assert cache.get(key) == FILES
    assert cache.get(key_of("measure", {"model": "m"})) is None


def test_without_a_folder_nothing_is_remembered() -> None:
    Cache(None).put("ab" * 32, FILES)
    assert Cache(None).get("ab" * 32) is None


@given(ENTRIES)
def test_pack_and_unpack(files: dict[str, bytes]) -> None:
    assert unpack(pack(files)) == files


@given(ENTRIES, st.data())
def test_an_entry_with_one_changed_byte_is_no_answer(files: dict[str, bytes], data: st.DataObject) -> None:
    packed = bytearray(pack(files))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(packed))


@pytest.mark.parametrize("size", [0, 1, 20, -1])
def test_a_truncated_entry_is_absent_and_can_be_put_again(tmp_path: Path, size: int) -> None:
    cache, key = Cache(tmp_path), "cd" * 32
    cache.put(key, FILES)
    path = entry(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert cache.get(key) is None
    cache.put(key, FILES)
    assert cache.get(key) == FILES


def test_a_folder_that_cannot_be_written_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("ef" * 32, FILES)
    assert cache.get("ef" * 32) is None


def test_keys_depend_on_everything_and_on_nothing_else() -> None:
    question = {"model": "m", "recipe": {"engine": "e"}}
    assert key_of("build", question) == key_of("build", dict(reversed(question.items())))
    assert key_of("build", question) != key_of("measure", question)
    assert key_of("build", question) != key_of("build", {**question, "model": "n"})


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("EDGEKIT_CACHE")
    assert default_folder() == tmp_path / "b" / "edgekit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "edgekit"
