"""Messages by which one parser of HTTP/1.1 is made to see another request than the next one does.

Every one must be refused: RFC 9112 (2.2, 5, 6, 7.1), RFC 9110 (5.5, 8.6); shapes known from request
smuggling (CL.TE, TE.CL, TE.TE, CL.0, chunk extensions, line endings).
"""

from __future__ import annotations

INNER = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
"""What an attacker would have a second parser answer."""
_START = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_EMPTY = b"0\r\n\r\n"


def _post(fields: bytes, body: bytes = b"") -> bytes:
    return _START + fields + b"\r\n" + body


def _chunks(body: bytes) -> bytes:
    return _post(_CHUNKED, body)


def _length(value: bytes, body: bytes = b"12345") -> bytes:
    return _post(b"Content-Length:" + value + b"\r\n", body)


LENGTHS = {
    "two that differ": _post(b"Content-Length: 5\r\nContent-Length: 0\r\n", b"12345"),
    "two that agree": _post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"12345"),
    "a list that differs": _length(b" 5, 0"),
    "a list that agrees": _length(b" 5, 5"),
    "plus": _length(b" +5"),
    "minus": _length(b" -5"),
    "hexadecimal": _length(b" 0x5"),
    "underscore": _length(b" 0_5"),
    "letters after it": _length(b" 5abc"),
    "empty": _length(b"", b""),
    "spaces only": _length(b"   ", b""),
    "space inside": _length(b" 0 5"),
    "a fraction": _length(b" 5.0"),
    "an exponent": _length(b" 5e0"),
    "another script's digit": _length(" \u0665".encode()),
    "vertical tab": _length(b" \x0b5"),
    "beyond 64 bits": _length(b" 18446744073709551621"),
    "beyond everything": _length(b" " + b"9" * 400),
}

CODINGS = {
    "length, then chunked": _post(b"Content-Length: 5\r\n" + _CHUNKED, _EMPTY),
    "chunked, then length": _post(_CHUNKED + b"Content-Length: 5\r\n", _EMPTY),
    "length 0 and chunked": _post(b"Content-Length: 0\r\n" + _CHUNKED, b"5\r\n12345\r\n0\r\n\r\n"),
    "chunked twice in a list": _post(b"Transfer-Encoding: chunked, chunked\r\n", _EMPTY),
    "chunked twice": _post(_CHUNKED * 2, _EMPTY),
    "chunked, then identity": _post(_CHUNKED + b"Transfer-Encoding: identity\r\n", _EMPTY),
    "identity, then chunked": _post(b"Transfer-Encoding: identity\r\n" + _CHUNKED, _EMPTY),
    "chunked not last": _post(b"Transfer-Encoding: chunked, gzip\r\n", _EMPTY),
    "identity": _post(b"Transfer-Encoding: identity\r\n", _EMPTY),
    "identity and a length": _post(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"12345"),
    "gzip": _post(b"Transfer-Encoding: gzip\r\n", _EMPTY),
    "almost chunked": _post(b"Transfer-Encoding: xchunked\r\n", _EMPTY),
    "quoted": _post(b'Transfer-Encoding: "chunked"\r\n', _EMPTY),
    "with a parameter": _post(b"Transfer-Encoding: chunked;q=1\r\n", _EMPTY),
    "vertical tab before": _post(b"Transfer-Encoding: \x0bchunked\r\n", _EMPTY),
    "form feed after": _post(b"Transfer-Encoding: chunked\x0c\r\n", _EMPTY),
    "empty": _post(b"Transfer-Encoding:\r\n", _EMPTY),
    "space before the colon": _post(b"Transfer-Encoding : chunked\r\n", _EMPTY),
    "tab before the colon": _post(b"Transfer-Encoding\t: chunked\r\n", _EMPTY),
    "on the next line": _post(b"Transfer-Encoding:\r\n chunked\r\n", _EMPTY),
    "in HTTP/1.0": _chunks(_EMPTY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "underscore and a length": _post(b"Transfer_Encoding: chunked\r\n" + _CHUNKED + b"Content-Length: 5\r\n"),
}

FIELDS = {
    "folded by a space": _post(b"X: a\r\n b\r\nContent-Length: 0\r\n"),
    "folded by a tab": _post(b"X: a\r\n\tb\r\nContent-Length: 0\r\n"),
    "folded length": _post(b"X: a\r\n Content-Length: 5\r\n", b"12345"),
    "first line begins with a space": _post(b"").replace(b"\r\nHost", b"\r\n Host"),
    "space before the colon": _post(b"Content-Length : 0\r\n"),
    "no colon": _post(b"Content-Length 0\r\n"),
    "no name": _post(b": 0\r\n"),
    "space in the name": _post(b"Content Length: 0\r\n"),
    "NUL in the name": _post(b"Content-Length\0: 0\r\n"),
    "NUL in the value": _post(b"X: a\0b\r\nContent-Length: 0\r\n"),
    "CR in the value": _post(b"X: a\rContent-Length: 5\r\n\r\n", b"12345"),
    "control character in the value": _post(b"X: a\x01b\r\nContent-Length: 0\r\n"),
    "no Host": _post(b"Content-Length: 0\r\n").replace(b"Host: x\r\n", b""),
    "two Hosts": _post(b"Host: y\r\nContent-Length: 0\r\n"),
    "two Hosts that agree": _post(b"Host: x\r\nContent-Length: 0\r\n"),
    "colon at the end of a name": _post(b"Content-Length:: 0\r\n"),
}

LINES = {
    "bare LF everywhere": b"GET /v2/health/live HTTP/1.1\nHost: x\n\n",
    "bare LF after the request line": b"GET /v2/health/live HTTP/1.1\nHost: x\r\n\r\n",
    "bare LF after a field": _post(b"X: y\nContent-Length: 0\r\n"),
    "bare LF before the body": _START + b"Content-Length: 0\r\n\n",
    "CR CR LF": _post(b"X: y\r\r\nContent-Length: 0\r\n"),
    "bare CR after the request line": b"GET /v2/health/live HTTP/1.1\rHost: x\r\n\r\n",
    "tab": b"GET\t/v2/health/live\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "space at the end": b"GET /v2/health/live HTTP/1.1 \r\nHost: x\r\n\r\n",
    "space before": b" GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in the target": b"GET /v2/health /live HTTP/1.1\r\nHost: x\r\n\r\n",
    "control character in the target": b"GET /v2/health\x01/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the target": b"GET /v2/health\0/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad method": b"G@T /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /v2/health/live\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /v2/health/live HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/1.2": b"GET /v2/health/live HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/3.0": b"GET /v2/health/live HTTP/3.0\r\nHost: x\r\n\r\n",
    "HTTP/1.10": b"GET /v2/health/live HTTP/1.10\r\nHost: x\r\n\r\n",
    "HTTP/1": b"GET /v2/health/live HTTP/1\r\nHost: x\r\n\r\n",
    "lower case": b"GET /v2/health/live http/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /v2/health/live ICE/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
}

CHUNKS = {
    "0x": _chunks(b"0x5\r\n12345\r\n0\r\n\r\n"),
    "plus": _chunks(b"+5\r\n12345\r\n0\r\n\r\n"),
    "minus": _chunks(b"-1\r\n12345\r\n0\r\n\r\n"),
    "underscore": _chunks(b"0_5\r\n12345\r\n0\r\n\r\n"),
    "space before": _chunks(b" 5\r\n12345\r\n0\r\n\r\n"),
    "empty": _chunks(b"\r\n12345\r\n0\r\n\r\n"),
    "only an extension": _chunks(b";a=b\r\n12345\r\n0\r\n\r\n"),
    "beyond 64 bits": _chunks(b"10000000000000005\r\n12345\r\n0\r\n\r\n"),
    "beyond everything": _chunks(b"F" * 40 + b"\r\n12345\r\n0\r\n\r\n"),
    "LF after the size": _chunks(b"5\n12345\r\n0\r\n\r\n"),
    "LF in an extension": _chunks(b"5;a\nb\r\n12345\r\n0\r\n\r\n"),
    "CR in an extension": _chunks(b"5;a\rb\r\n12345\r\n0\r\n\r\n"),
    "LF after the data": _chunks(b"5\r\n12345\n0\r\n\r\n"),
    "nothing after the data": _chunks(b"5\r\n123450\r\n\r\n"),
    "more data than announced": _chunks(b"5\r\n1234567\r\n0\r\n\r\n"),
    "LF at the end": _chunks(b"5\r\n12345\r\n0\n\n"),
    "a letter": _chunks(b"5g\r\n12345\r\n0\r\n\r\n"),
    "a folded trailer": _chunks(b"0\r\nX: a\r\n b\r\n\r\n"),
    "a length in the trailer": _chunks(b"0\r\nContent-Length: 5\r\n\r\n"),
    "a coding in the trailer": _chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "a trailer without a colon": _chunks(b"0\r\nX\r\n\r\n"),
    "an expectation, and LF after the size": _post(b"Expect: 100-continue\r\n" + _CHUNKED, b"5\n12345\r\n"),
}

REFUSED = {
    f"{group}: {name}": message
    for group, cases in {
        "length": LENGTHS, "coding": CODINGS, "field": FIELDS, "line": LINES, "chunk": CHUNKS
    }.items()
    for name, message in cases.items()
}  # fmt: skip
