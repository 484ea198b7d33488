"""An HTTP/1.1 request as far as it has come. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit_agent.serve.heads import SINGLE

MAX_HEADERS = 100
_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")


@dataclass(slots=True)
class Arriving:
    """What its parser has said, and how many bytes that took."""

    url: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    repeated: bytes = b""
    """One of SINGLE that came more than once."""
    received: int = 0
    """Bytes, as far as they came after those it began in."""
    header_bytes: int = 0
    head_done: bool = False
    length: int = 0
    """Of the body, where it is announced."""
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    owes_continue: bool = False
    upgrading: bool = False
    """It comes once more, without its offer of another protocol."""

    def header(self, name: bytes, value: bytes) -> bool:
        """Note a header field; False: it is one too many."""
        name = name.lower()
        if name in self.headers and name in SINGLE:
            self.repeated = name
        if len(self.headers) >= MAX_HEADERS:
            return False
        self.headers[name] = value.strip(b" \t")  # llhttp leaves what follows
        return True

    def whole_body(self) -> bytes:
        """All parts of the body."""
        return self.body[0] if len(self.body) == 1 else b"".join(self.body)

    def head_without_upgrade(self, method: bytes) -> bytes:
        """The head again, without its offer of another protocol."""
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        fields = self.headers.items()
        lines += [name + b": " + value for name, value in fields if name not in _UPGRADE_HEADERS]
        return b"\r\n".join(lines) + b"\r\n\r\n"
