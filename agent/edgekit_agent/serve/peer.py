"""Who is at the other end of a connection: from this machine or not, and as which user."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

UNKNOWN = -1
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_MAX_LINES = 65536
_CREDENTIALS = struct.Struct("3i")

Address = tuple[str, int]


class Peer:
    """Of one connection, for as long as it is open. Made on the event loop, asked on any thread."""

    __slots__ = ("_ours", "_theirs", "_uid", "at_close", "key", "local", "open", "unix")

    def __init__(
        self,
        *,
        local: bool,
        uid: int | None,
        unix: bool = False,
        key: str = "",
        theirs: Address = ("", 0),
        ours: Address = ("", 0),
    ) -> None:
        """`uid`: None when it is to be looked up by the two addresses."""
        self.unix = unix
        """Connected over a Unix socket, whose file permissions have let it in."""
        self.key = key
        """Who it is among others that want a share: one key, one client."""
        self.local = local
        """Connected over a Unix socket or the loopback interface."""
        self.open = True
        """False once the connection is closed: its address may be another's then."""
        self.at_close: set[Callable[[Peer], None]] = set()
        """Called by `close`."""
        self._uid = uid
        self._theirs, self._ours = theirs, ours

    def close(self) -> None:
        """The connection is closed. On the event loop."""
        self.open = False
        while self.at_close:
            self.at_close.pop()(self)

    def uid(self) -> int:
        """The user at the other end; UNKNOWN when not local or not to be found. Asks the kernel once."""
        if self._uid is None:
            found = _find(self._theirs, self._ours)
            self._uid = found if self.open else UNKNOWN
        return self._uid


NOBODY = Peer(local=False, uid=UNKNOWN)


def of(transport: asyncio.BaseTransport) -> Peer:
    """The peer of a connection that has just been made."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        try:
            # A duplicate: what asyncio and uvloop hand out is not quite a socket.
            with sock.dup() as real:
                found = real.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:  # gone already
            return Peer(local=True, uid=UNKNOWN, unix=True)
        pid, uid, _ = _CREDENTIALS.unpack(found)
        return Peer(local=True, uid=uid, unix=True, key=f"unix:{uid}:{pid}")
    theirs, ours = (_address(transport.get_extra_info(what)) for what in ("peername", "sockname"))
    if theirs is None or ours is None or not ipaddress.ip_address(theirs[0]).is_loopback:
        return Peer(local=False, uid=UNKNOWN, key=_site(theirs[0]) if theirs else "")
    return Peer(local=True, uid=None, key=_site(theirs[0]), theirs=theirs, ours=ours)


def host_of(sock: socket.socket) -> str:
    """The key of the client at the other end of a TCP connection."""
    try:
        found = _address(sock.getpeername())
    except OSError:  # gone already
        found = None
    return _site(found[0]) if found else ""


def _site(host: str) -> str:
    """An IPv4 address, or the network half of an IPv6 address: of those a site has as many as it likes."""
    address = ipaddress.ip_address(host)
    return host if isinstance(address, ipaddress.IPv4Address) else f"{address.packed[:8].hex()}::"


def owner(table: Path, theirs: Address, ours: Address) -> int:
    """The user of the socket bound to `theirs` and connected to `ours`.

    `table`: /proc/net/tcp, or a path that ends in tcp6 (proc_net(5)). Returns UNKNOWN when it is not listed.
    Raises OSError.
    """
    six = table.name.endswith("6")
    wanted = [f"{_hex(host, six)}:{port:04X}" for host, port in (theirs, ours)]
    with table.open() as lines:
        for number, line in enumerate(lines):
            if number > _MAX_LINES:
                break
            fields = line.split()
            if fields[1:3] == wanted:
                return int(fields[7])
    return UNKNOWN


def _find(theirs: Address, ours: Address) -> int:
    for table in _TABLES:
        try:
            uid = owner(table, theirs, ours)
        except OSError:  # no such protocol, or no /proc
            continue
        if uid != UNKNOWN:
            return uid
    return UNKNOWN


def _address(name: Sequence[object] | None) -> Address | None:
    """Host and port without the rest; an IPv4 address that was mapped into IPv6 as IPv4."""
    if not name or not isinstance(name, tuple) or len(name) < 2:
        return None
    try:
        host = ipaddress.ip_address(str(name[0]).partition("%")[0])
    except ValueError:
        return None
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return str(mapped or host), int(str(name[1]))


def _hex(host: str, six: bool) -> str:
    """An address as the kernel prints it: words of the machine's byte order. None has IPv6 in IPv4."""
    address = ipaddress.ip_address(host)
    if six and isinstance(address, ipaddress.IPv4Address):
        address = ipaddress.IPv6Address(f"::ffff:{address}")
    if not six and isinstance(address, ipaddress.IPv6Address):
        return ""
    words = struct.unpack(f"={len(address.packed) // 4}I", address.packed)
    return "".join(f"{word:08X}" for word in words)
