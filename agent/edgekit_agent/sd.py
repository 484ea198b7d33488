"""What systemd says to a service and hears from it, without its library: readiness, watchdog, sockets.

Protocols: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3) of systemd; both are stable.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager

log = logging.getLogger("edgekit.agent.sd")

_FIRST = 3
"""SD_LISTEN_FDS_START: inherited sockets are numbered from here."""
_MAX_SOCKETS = 16


class Manager:
    """The service manager that started this process, if any; without one nothing here does anything."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)
        """It wants to hear from us at least so often, in seconds; 0: it does not watch."""

    def tell(self, **fields: str | int) -> None:
        """Send assignments such as READY=1 or STATUS="..."; never raises, never blocks for long."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1)
                sock.sendto(text.encode(), self._address)
        except OSError as exc:
            log.warning("cannot tell the service manager: %s", exc)

    def keep_alive(self, healthy: Callable[[], bool], stop: threading.Event) -> None:
        """Until `stop`: tell it three times per period that we live, as long as `healthy`. Blocks."""
        while self.watchdog_s and not stop.wait(self.watchdog_s / 3):
            if healthy():
                self.tell(WATCHDOG=1)
            else:
                log.error("not healthy: the service manager will start this agent again")


class Pulse:
    """A thread that goes round beats; others see when it has not for too long."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s, self._last = longest_s, time.monotonic()

    def beat(self) -> None:
        self._last = time.monotonic()

    @property
    def healthy(self) -> bool:
        return time.monotonic() - self._last < self._longest_s


@contextmanager
def service(status: str, healthy: Callable[[], bool]) -> Iterator[None]:
    """Ready inside, stopping afterwards; meanwhile the watchdog hears from us as long as `healthy`."""
    manager, stop = Manager(), threading.Event()
    threading.Thread(target=manager.keep_alive, args=(healthy, stop), name="watchdog", daemon=True).start()
    manager.tell(READY=1, STATUS=status)
    try:
        yield
    finally:
        manager.tell(STOPPING=1)
        stop.set()


def inherited(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening stream sockets of socket activation, in the order of the unit; they are ours from now on.

    Taken once: the variables are removed, so that children do not take them for theirs.
    """
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for number in range(_FIRST, _FIRST + min(int(count), _MAX_SOCKETS)):
        os.set_inheritable(number, False)
        made = socket.socket(fileno=number)
        if made.type == socket.SOCK_STREAM and made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(made)
        else:
            log.warning("the inherited socket %d does not listen for streams and is closed", number)
            made.close()
    return found


def _watchdog_s(environment: Mapping[str, str]) -> float:
    process, period = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    mine = process in ("", str(os.getpid()))
    return int(period) / 1e6 if mine and period.isdigit() and len(period) < 16 else 0.0
