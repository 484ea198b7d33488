"""Shared memory with real objects in /dev/shm, and who is at the other end of real connections."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import shared_memory as posix
from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit_agent.serve import peer, shared_memory
from edgekit_agent.serve.peer import Peer
from edgekit_agent.serve.shared_memory import Regions

ME = Peer(local=True, uid=os.getuid())
OTHER = Peer(local=True, uid=os.getuid() + 1)


def content(memory: posix.SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


@pytest.fixture
def memory() -> Iterator[posix.SharedMemory]:
    made = posix.SharedMemory(create=True, size=4096)
    content(made)[:8] = b"abcdefgh"
    yield made
    made.close()
    made.unlink()


def test_read_and_write_what_a_client_made(memory: posix.SharedMemory) -> None:
    regions = Regions()
    regions.register(ME, "r", f"/{memory.name}", 2, 100)
    assert regions.status(ME) == [{"name": "r", "key": f"/{memory.name}", "offset": 2, "byte_size": 100}]
    assert regions.status(ME, "r") == regions.status(ME)
    assert regions.read(ME, "r", 1, 3) == b"def"
    regions.write(ME, "r", 97, 3, b"XYZ")
    assert bytes(content(memory)[98:103]) == b"\0XYZ\0"
    regions.unregister(ME, "r")
    regions.unregister(ME, "r")
    assert regions.status(ME) == []
    with pytest.raises(InputError, match="Unable to find shared memory region: 'r'"):
        regions.read(ME, "r", 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (100, 1), (101, 0), (-1, 2), (0, -1), (1 << 70, 1)])
def test_nothing_outside_a_region_is_touched(memory: posix.SharedMemory, offset: int, size: int) -> None:
    regions = Regions()
    regions.register(ME, "r", memory.name, 0, 100)
    before = bytes(content(memory))
    with pytest.raises(InputError, match="Invalid offset"):
        regions.read(ME, "r", offset, size)
    with pytest.raises(InputError, match="Invalid offset"):
        regions.write(ME, "r", offset, size, b"")
    with pytest.raises(InputError, match="should be at least 5 bytes"):
        regions.write(ME, "r", 96, 4, b"12345")
    assert bytes(content(memory)) == before


@pytest.mark.parametrize(
    ("key", "offset", "size", "words"),
    [
        ("/nope-not-there", 0, 8, "Unable to open shared memory region: '/nope-not-there'"),
        ("", 0, 8, "no name"),
        ("..", 0, 8, "no name"),
        ("../etc/passwd", 0, 8, "no name"),
        ("/dev/shm/x", 0, 8, "no name"),
        ("a\0b", 0, 8, "no name"),
        ("a" * 300, 0, 8, "no name"),
        ("\ud800", 0, 8, "Unable to open"),
        ("MINE", 0, 4097, "has 4096 bytes"),
        ("MINE", 4096, 1, "has 4096 bytes"),
        ("MINE", -1, 1, "must be sizes"),
        ("MINE", 0, 0, "must be sizes"),
        ("MINE", 1 << 70, 1, "must be sizes"),
    ],
)
def test_what_cannot_be_registered(
    memory: posix.SharedMemory, key: str, offset: int, size: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Regions().register(ME, "r", memory.name if key == "MINE" else key, offset, size)


def test_only_plain_objects_are_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    regions = Regions(tmp_path)
    for key in ("link", "fifo", "folder"):
        with pytest.raises(InputError, match="Unable to open"):
            regions.register(ME, "r", key, 0, 1)
    regions.register(ME, "r", "secret", 0, 8)


def test_users_do_not_meet(memory: posix.SharedMemory) -> None:
    regions = Regions()
    regions.register(ME, "r", memory.name, 0, 8)
    assert regions.status(OTHER) == []
    with pytest.raises(InputError, match="Unable to find"):
        regions.read(OTHER, "r", 0, 8)
    with pytest.raises(InputError, match="Unable to find"):
        regions.write(OTHER, "r", 0, 8, b"stolen")
    regions.unregister(OTHER)
    assert regions.read(ME, "r", 0, 8) == b"abcdefgh"
    # The same words as for an object that does not exist: its existence is nobody's business.
    with pytest.raises(InputError, match="Unable to open shared memory region"):
        regions.register(OTHER, "mine", memory.name, 0, 8)


@pytest.mark.parametrize("who", [peer.NOBODY, Peer(local=False, uid=0), Peer(local=True, uid=peer.UNKNOWN)])
def test_strangers_get_nothing(memory: posix.SharedMemory, who: Peer) -> None:
    regions = Regions()
    for act in (
        lambda: regions.register(who, "r", memory.name, 0, 8),
        lambda: regions.status(who),
        lambda: regions.unregister(who),
        lambda: regions.read(who, "r", 0, 1),
    ):
        with pytest.raises(InputError, match="shared memory needs a client"):
            act()


def test_a_client_that_shortens_its_object_hurts_nobody(memory: posix.SharedMemory) -> None:
    regions = Regions()
    regions.register(ME, "r", memory.name, 0, 4096)
    os.truncate(shared_memory.FOLDER / memory.name, 10)
    assert regions.read(ME, "r", 0, 8) == b"abcdefgh"
    with pytest.raises(InputError, match="has become shorter"):
        regions.read(ME, "r", 8, 8)
    with pytest.raises(InputError, match="has become shorter"):
        regions.write(ME, "r", 8, 8, b"12345678")
    assert (shared_memory.FOLDER / memory.name).stat().st_size == 10
    os.truncate(shared_memory.FOLDER / memory.name, 4096)  # the fixture maps it


def test_what_a_client_leaves_behind_goes_with_its_connection(memory: posix.SharedMemory) -> None:
    regions = Regions()
    gone = posix.SharedMemory(create=True, size=16)
    client, other = (Peer(local=True, uid=os.getuid()) for _ in range(2))
    regions.register(client, "gone", gone.name, 0, 16)
    regions.register(client, "kept", memory.name, 0, 16)
    gone.close()
    gone.unlink()
    other.close()
    assert regions.read(ME, "gone", 0, 1) == b"\0"
    client.close()
    assert [region["name"] for region in regions.status(ME)] == ["kept"]


def test_the_number_of_regions_is_bounded_and_dead_ones_make_room(memory: posix.SharedMemory) -> None:
    regions = Regions()
    dying = posix.SharedMemory(create=True, size=16)
    dead = Peer(local=True, uid=os.getuid())
    regions.register(dead, "dying", dying.name, 0, 16)
    dead.close()
    for number in range(shared_memory.MAX_PER_USER - 1):
        regions.register(ME, str(number), memory.name, 0, 8)
    with pytest.raises(InputError, match="too many"):
        regions.register(ME, "more", memory.name, 0, 8)
    dying.close()
    dying.unlink()
    regions.register(ME, "more", memory.name, 0, 8)
    with pytest.raises(InputError, match="already in manager"):
        regions.register(ME, "more", memory.name, 0, 8)
    regions.unregister(ME)
    assert regions.status(ME) == []


def test_a_descriptor_lives_as_long_as_somebody_reads(memory: posix.SharedMemory) -> None:
    regions = Regions()
    before = len(list(Path("/proc/self/fd").iterdir()))
    regions.register(ME, "r", memory.name, 0, 8)
    held = regions._span(ME, "r", 0, 8)
    regions.unregister(ME)
    assert os.pread(held.object.fd, 8, 0) == b"abcdefgh"
    del held
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- peers


async def _peer_of(listener: socket.socket, connect: list[str]) -> tuple[bool, int]:
    """What the server's side knows of a client process that connects as another user."""
    found: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            found.set_result(peer.of(transport))

    server = await asyncio.get_running_loop().create_server(Server, sock=listener)
    child = await asyncio.create_subprocess_exec(*connect, stdin=subprocess.PIPE)
    who = await asyncio.wait_for(found, 20)
    answer = who.local, who.uid()
    assert child.stdin is not None
    child.stdin.close()
    assert await child.wait() == 0
    server.close()
    return answer


CLIENT = (
    "import os, socket, sys\n"
    "os.setuid(int(sys.argv[1]))\n"
    "s = socket.socket(int(sys.argv[2]), socket.SOCK_STREAM)\n"
    "s.connect(eval(sys.argv[3]))\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter; pytest's own they may not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(
    ("listen", "family", "to"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("::1", socket.AF_INET6, "::1"),
        ("127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
        ("unix", socket.AF_UNIX, ""),
    ],
)
def test_the_kernel_tells_who_connects(open_folder: Path, listen: str, family: int, to: str) -> None:
    uid = 65534 if os.getuid() == 0 else os.getuid()
    if listen == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(open_folder / "s"))
        (open_folder / "s").chmod(0o777)
        address: object = str(open_folder / "s")
    else:
        try:
            listener = socket.create_server(
                (listen, 0), family=socket.AF_INET6 if ":" in listen else socket.AF_INET
            )
        except OSError:
            pytest.skip("this machine has no IPv6")
        address = (to, listener.getsockname()[1])
    command = [sys.executable, "-c", CLIENT, str(uid), str(int(family)), repr(address)]
    assert asyncio.run(_peer_of(listener, command)) == (True, uid)


def test_a_closed_connection_is_nobodys() -> None:
    async def main() -> int:
        gone = Peer(local=True, uid=None, theirs=("127.0.0.1", 1), ours=("127.0.0.1", 2))
        gone.open = False
        return gone.uid()

    assert asyncio.run(main()) == peer.UNKNOWN


def test_tables_of_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    words = "0100007F" if sys.byteorder == "little" else "7F000001"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: {words}:1F40 {words}:9C41 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        f"   1: {words}:9C41 {words}:1F40 01 00000000:00000000 00:00000000 00000000  1234        0 2 1\n"
    )
    client, server = ("127.0.0.1", 40001), ("127.0.0.1", 8000)
    assert peer.owner(table, client, server) == 1234
    assert peer.owner(table, server, client) == 0
    assert peer.owner(table, ("127.0.0.1", 40002), server) == peer.UNKNOWN
    assert peer.owner(table, ("::1", 40001), ("::1", 8000)) == peer.UNKNOWN
