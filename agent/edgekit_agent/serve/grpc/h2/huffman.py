"""Huffman-coded strings of HPACK (RFC 7541 section 5.2, code of Appendix B)."""

from __future__ import annotations

import functools

from edgekit_agent.serve.grpc.h2.errors import COMPRESSION_ERROR, H2Error

# Appendix B: symbols by the length of their code in bits. The code is canonical (codes count up through
# the lengths, and through the symbols of one length), so the lengths define it.
_BY_LENGTH: dict[int, bytes] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: b"\n\r\x16",  # and the end-of-string symbol, which is all ones
}
_NONE = 256
_INVALID = -1


def decode(data: bytes) -> bytes:
    """The string; at most 8/5 of the size of `data`. Raises H2Error."""
    table, ends = _automaton()
    state = 0
    out = bytearray()
    for byte in data:
        entry = table[state << 4 | byte >> 4]
        if entry >= 0:
            if not entry & _NONE:
                out.append(entry & 0xFF)
            entry = table[entry >> 9 << 4 | byte & 15]
        if entry < 0:
            raise H2Error(COMPRESSION_ERROR, "a Huffman-coded string holds the end-of-string symbol")
        if not entry & _NONE:
            out.append(entry & 0xFF)
        state = entry >> 9
    if state not in ends:
        raise H2Error(COMPRESSION_ERROR, "a Huffman-coded string ends in the middle of a symbol")
    return bytes(out)


@functools.cache
def _automaton() -> tuple[list[int], frozenset[int]]:
    """Transitions by four bits, and the states in which a string may end.

    A state is an inner node of the code's tree, the root is 0. Entry [state << 4 | bits] is
    next_state << 9 | symbol, symbol 256 when none is complete (four bits complete at most one, for the
    shortest code has five), or -1. Padding is a prefix of the all-ones code, of at most seven bits.
    """
    tree: list[list[int]] = [[0, 0]]  # children: inner nodes positive, leaves ~symbol
    code = length = 0
    for bits, symbols in _BY_LENGTH.items():
        code <<= bits - length
        length = bits
        for symbol in symbols:
            node = 0
            for position in range(bits - 1, 0, -1):
                side = code >> position & 1
                if not tree[node][side]:
                    tree.append([0, 0])
                    tree[node][side] = len(tree) - 1
                node = tree[node][side]
            tree[node][code & 1] = ~symbol
            code += 1
    ends, node = [0], 0
    for _ in range(7):
        node = tree[node][1]
        ends.append(node)
    return [_step(tree, state, bits) for state in range(len(tree)) for bits in range(16)], frozenset(ends)


def _step(tree: list[list[int]], state: int, bits: int) -> int:
    symbol = _NONE
    for position in (3, 2, 1, 0):
        child = tree[state][bits >> position & 1]
        if child < 0:
            symbol, state = ~child, 0
        elif child:
            state = child
        else:
            return _INVALID  # the one leaf that was not filled: end-of-string
    return state << 9 | symbol
