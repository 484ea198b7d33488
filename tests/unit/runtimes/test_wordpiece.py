"""Tokens of a text, against those that Hugging Face's `tokenizers` 0.23.3 gives for all-MiniLM-L6-v2."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.build import processing
from edgekit.bundle.steps import WordPiece
from edgekit.errors import FormatError, InputError
from edgekit.runtimes._pipeline import wordpiece
from edgekit.runtimes._pipeline.wordpiece import Tokenizer, parse

VOCABULARY = Path(__file__).parents[4] / "shared" / "data" / "minilm-int8" / "tokenizer.json"
needs_minilm = pytest.mark.skipif(not VOCABULARY.exists(), reason="no example data beside the repository")

SMALL = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\nwor\n##ld\n##s\n!\n,\n\xe4\xbd\xa0\n"


def step(**changes: object) -> WordPiece:
    return WordPiece(**{"vocabulary": "pipeline/vocab.txt", "ids": "ids", **changes})  # type: ignore[arg-type]


def ids(text: str, length: int = 32, content: bytes = SMALL, **changes: object) -> list[int]:
    return Tokenizer(step(**changes), parse(content)).ids(text.encode(), length)


BERT = {
    "A plane is taking off.": [101, 1037, 4946, 2003, 2635, 2125, 1012, 102],
    "": [101, 102],
    "   \t\n": [101, 102],
    "Don't panic: it's 42!": [101, 2123, 1005, 1056, 6634, 1024, 2009, 1005, 1055, 4413, 999, 102],
    "Ünïcödé café naïve": [101, 27260, 7668, 15743, 102],
    "你好, world": [101, 100, 100, 1010, 2088, 102],
    "electroencephalographically unbelievable": [
        101, 16175, 10127, 21890, 21197, 20721, 3973, 23653, 102,
    ],
    "x" * 150: [101, 100, 102],
    "tab\tand\u2028line\0nul\u200bzero": [101, 21628, 1998, 17517, 5313, 6290, 2080, 102],
    "İstanbul ſtraße ﬁn": [101, 9960, 100, 1984, 2078, 102],
    "🙂 smile": [101, 100, 2868, 102],
    "a " * 100: [101, *[1037] * 30, 102],
}  # fmt: skip


@needs_minilm
@pytest.mark.parametrize("text", BERT, ids=lambda text: ascii(text[:20]))
def test_tokens_are_berts(text: str) -> None:
    vocabulary = parse(processing._vocabulary(VOCABULARY))
    assert len(vocabulary) == 30522
    assert Tokenizer(step(), vocabulary).ids(text.encode(), 32) == BERT[text]


def test_longest_piece_first_and_unknown_words() -> None:
    assert ids("Hello worlds!") == [2, 4, 5, 8, 9, 3]
    assert ids("worry") == [2, 1, 3]
    assert ids("你hello,") == [2, 11, 4, 10, 3]
    assert ids("Hello", lowercase=False) == [2, 1, 3]


def test_a_client_cannot_send_special_tokens() -> None:
    """Hugging Face's tokeniser would take them for separators."""
    assert 3 not in ids("[SEP] hello")[:-1]
    assert 2 not in ids("[CLS]")[1:]


def test_what_is_longer_is_cut_and_keeps_its_end() -> None:
    assert ids("hello " * 50, 5) == [2, 4, 4, 4, 3]
    assert ids("worlds worlds", 4) == [2, 5, 8, 3]


@pytest.mark.parametrize(
    ("body", "words"), [(b"\xff\xfe", "not UTF-8: .* at byte 0"), (b"a" * (1 << 18) + b"b", "262145 bytes")]
)
def test_bad_texts(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Tokenizer(step(), parse(SMALL)).ids(body, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\na\n", "twice"), (b"\xff", "not UTF-8"), (b"hello\n", r"no '\[UNK\]'"), (b"", "no ")],
)
def test_bad_vocabularies(content: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        Tokenizer(step(), parse(content))
    with pytest.raises(FormatError, match="more than"):
        parse(bytes(wordpiece.MAX_VOCABULARY_BYTES + 1))


def test_carriage_returns_are_no_part_of_a_token() -> None:
    assert parse(SMALL.replace(b"\n", b"\r\n")) == parse(SMALL)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.integers(3, 40))
def test_any_text_gives_known_numbers_within_the_length(text: str, length: int) -> None:
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    found = Tokenizer(step(), parse(SMALL)).ids(body, length)
    assert 2 <= len(found) <= length and found[0] == 2 and found[-1] == 3
    assert set(found) <= set(range(12))
    shown = [c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn"]
    kept = [c for c in "".join(shown).lower() if c != "\ufffd" and not _dropped(unicodedata.category(c))]
    assert "".join(wordpiece.words(text, lowercase=True)) == "".join(kept)


def _dropped(category: str) -> bool:
    return category in ("Cc", "Cf", "Co") or category[0] == "Z"
