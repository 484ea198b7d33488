"""Text to token numbers, as BERT's tokeniser does.

Source: Devlin et al. 2019, arXiv:1810.04805, and its code (tokenization.py of google-research/bert):
clean, split at white space and punctuation, then the longest known piece first, later pieces marked "##".
The names of special tokens in a text are text like any other: a client cannot put a separator in.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from edgekit.bundle.step_rules import MAX_TOKEN
from edgekit.bundle.steps import WordPiece
from edgekit.errors import FormatError, InputError

MAX_VOCABULARY_BYTES = 16 << 20
MAX_TEXT_BYTES = 1 << 18
_CONTINUED = "##"
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Code points that are words of one character."""


def parse(content: bytes) -> dict[str, int]:
    """Token to number: one token per line. Raises FormatError."""
    if len(content) > MAX_VOCABULARY_BYTES:
        raise FormatError(f"vocabulary: {len(content)} bytes, more than the {MAX_VOCABULARY_BYTES} allowed")
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as exc:
        raise FormatError(f"vocabulary: not UTF-8: {exc}") from None
    numbers = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if len(numbers) != len(lines):
        raise FormatError(
            "vocabulary: a token is there twice", "one token per line, its number is the line's"
        )
    return numbers


class Tokenizer:
    def __init__(self, step: WordPiece, vocabulary: dict[str, int]) -> None:
        """Raises FormatError when a special token is not in the vocabulary."""
        for token in (step.unknown, step.first, step.last, step.padding):
            if token not in vocabulary:
                raise FormatError(f"vocabulary: it has no {token!r}", "name the special tokens as it does")
        self._step = step
        self._numbers = vocabulary
        self.padding = vocabulary[step.padding]
        self._longest = max(map(len, vocabulary))

    def ids(self, body: bytes, length: int) -> list[int]:
        """At most `length` numbers, first and last token included. Raises InputError for what is no UTF-8."""
        if len(body) > MAX_TEXT_BYTES:
            raise InputError(f"a text of {len(body)} bytes, {MAX_TEXT_BYTES} are allowed")
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InputError(f"the text is not UTF-8: {exc.reason} at byte {exc.start}") from None
        numbers = self._numbers
        found = [numbers[self._step.first]]
        for word in words(text, lowercase=self._step.lowercase):
            found += self._pieces(word)
            if len(found) >= length:
                break
        return [*found[: length - 1], numbers[self._step.last]]

    def _pieces(self, word: str) -> list[int]:
        """Longest known piece first; one unknown token where that fails."""
        unknown = [self._numbers[self._step.unknown]]
        if len(word) > MAX_TOKEN:
            return unknown
        found: list[int] = []
        begin = 0
        while begin < len(word):
            mark = _CONTINUED if begin else ""
            ends = range(min(len(word), begin + self._longest), begin, -1)
            end = next((end for end in ends if mark + word[begin:end] in self._numbers), 0)
            if not end:
                return unknown
            found.append(self._numbers[mark + word[begin:end]])
            begin = end
        return found


def words(text: str, *, lowercase: bool) -> Iterator[str]:
    """Runs of letters and digits, and every punctuation mark and ideograph by itself."""
    if lowercase:
        text = "".join(
            c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn"
        ).lower()
    word: list[str] = []
    for character in text:
        kind = _kind(character)
        if kind == "letter":
            word.append(character)
        elif kind != "nothing":
            if word:
                yield "".join(word)
                word = []
            if kind == "alone":
                yield character
    if word:
        yield "".join(word)


def _kind(character: str) -> str:
    """ "letter", "space", "alone" (a word by itself) or "nothing" (to be dropped)."""
    code = ord(character)
    if character in " \t\n\r":
        return "space"
    if code < 128:
        if character.isalnum():
            return "letter"
        return "alone" if 32 < code < 127 else "nothing"
    category = unicodedata.category(character)
    if category[0] == "Z":
        return "space"
    if category in ("Cc", "Cf", "Co") or code == 0xFFFD:
        return "nothing"
    ideograph = any(low <= code <= high for low, high in _IDEOGRAPHS)
    return "alone" if category[0] == "P" or ideograph else "letter"
