"""`edgekit-agent systemd-unit`: a unit for this installation, from the templates in systemd/."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from edgekit.errors import InputError

_STATES = Path("/var/lib")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


def service(state: Path, user: str, devices: Sequence[Path] = (), agent: Path | None = None) -> str:
    """The service. `devices`: what an engine needs, e.g. /dev/nvidia0. Raises InputError."""
    agent = agent or _installed()
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise InputError(f"--user {user!r}: not a user name", "create one: useradd --system edgekit")
    for path in (agent, state, *devices):
        _check(path)
    allowed = "\n".join(f"DeviceAllow={path} rw" for path in devices)
    return _template("edgekit-agent.service").format(
        agent=agent,
        state=state,
        user=user,
        place=_place(state),
        home="read-only" if any(agent.is_relative_to(home) for home in _HOMES) else "yes",
        devices=f"DevicePolicy=closed\n{allowed}" if devices else "PrivateDevices=yes",
    )


def sockets(address: str) -> str:
    """The sockets; `address` is HOST:PORT or a port. Raises InputError."""
    if not re.fullmatch(r"([0-9.]+:|\[[0-9a-fA-F:]+\]:)?[0-9]{1,5}", address):
        raise InputError(f"--socket {address!r}: not an address", "for example 127.0.0.1:8000")
    return _template("edgekit-agent.socket").format(address=address)


def _template(name: str) -> str:
    return (resources.files("edgekit_agent") / "systemd" / name).read_text(encoding="utf-8")


def _installed() -> Path:
    found = shutil.which("edgekit-agent") or sys.argv[0]
    return Path(found).absolute()


def _check(path: Path) -> None:
    if not path.is_absolute() or not re.fullmatch(r"[\w./@:+-]+", str(path)):
        raise InputError(f"{path}: systemd needs an absolute path without spaces or quotes")


def _place(state: Path) -> str:
    """How the service may write to its state, the rest of the system being read-only."""
    if state.parent == _STATES:
        return f"StateDirectory={state.name}\nStateDirectoryMode=0700"
    return f"ReadWritePaths={state}"
