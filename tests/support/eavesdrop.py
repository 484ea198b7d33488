"""Which names the processes of a command ask the resolver for. Run in namespaces of its own:

unshare --net --mount python eavesdrop.py FILE COMMAND...     (FILE gets the names, a line each)
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import tempfile
import threading
from fcntl import ioctl
from pathlib import Path

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_NO_SUCH_NAME = b"\x81\x83"


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def name_of(query: bytes) -> str:
    """The name that a DNS query asks for (RFC 1035, section 4.1)."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels)


def answer(server: socket.socket, heard: Path) -> None:
    """No name exists. For ever."""
    while True:
        query, whose = server.recvfrom(4096)
        with heard.open("a") as file:
            file.write(name_of(query) + "\n")
        server.sendto(query[:2] + _NO_SUCH_NAME + query[4:], whose)


def main() -> int:
    heard = Path(sys.argv[1])
    heard.touch()
    loopback_up()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("nameserver 127.0.0.1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
        threading.Thread(target=answer, args=(server, heard), daemon=True).start()
        return subprocess.run(sys.argv[2:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
