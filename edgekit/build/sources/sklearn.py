"""scikit-learn models in a pickle, as joblib writes them: plain or compressed."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Any

from edgekit.build.sources._base import Format, Look

_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which old torch.save files begin, as a pickle."""


def _is_pickle(head: bytes) -> bool:
    if head.startswith((b"\x1f\x8b", b"\x78")):
        head = _begin(zlib.decompressobj(wbits=47), head)
    elif head.startswith(b"BZh"):
        head = _begin(bz2.BZ2Decompressor(), head)
    elif head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        head = _begin(lzma.LZMADecompressor(), head)
    return len(head) > 2 and head[0] == 0x80 and head[1] in range(2, 6) and not head.startswith(_TORCH)


def _begin(reader: Any, data: bytes) -> bytes:
    """The first bytes of compressed data; empty when it is not that."""
    try:
        return bytes(reader.decompress(data, 16))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        return b""


def _recognise(look: Look) -> bool:
    return _is_pickle(look.head)


def _risk(look: Look) -> str:
    del look
    return "a pickle runs code when it is loaded"


FORMAT = Format(
    name="sklearn",
    title="scikit-learn (joblib, pickle)",
    env="sklearn",
    script="from_sklearn",
    packages=("scikit-learn", "skl2onnx", "onnx"),
    recognise=_recognise,
    risk=_risk,
)
