"""What the agent's processes do to themselves before they touch plaintext."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
PR_GET_DUMPABLE = 3


def test_the_probe_starts_for_an_ordinary_user() -> None:
    """Hardened, a process of an ordinary user may not write in /proc/self: the order matters."""
    python = [sys.executable, "-P"]
    if os.getuid() == 0:
        # It may read everything (our interpreter can lie under /root), but write nowhere.
        caps = "-all,+dac_read_search"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        python = [*drop, f"--inh-caps={caps}", f"--ambient-caps={caps}", *python]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*python, "-m", "edgekit_agent.child", str(os.getpid()), "1000", "edgekit_agent.probe"]
        probe = subprocess.Popen(
            [*command, "--control-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
    _, problem = probe.communicate(timeout=60)
    assert problem == b""
    assert probe.returncode == 1  # nobody had an order for it


@pytest.mark.parametrize("arguments", [["serve", "none.edgekit"], ["--config", "agent.toml"]])
def test_the_supervisor_leaves_no_core(tmp_path: Path, arguments: list[str]) -> None:
    """It holds keys and plaintext; a core dump would write them to the disk."""
    (tmp_path / "agent.toml").write_text('[device]\nid = "d"\nprofile = "generic-cpu"\n')
    script = (
        "import ctypes, resource, sys; from edgekit_agent.main import main\n"
        f"status = main({arguments})\n"
        f"dumpable = ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0)\n"
        "print(status, dumpable, *resource.getrlimit(resource.RLIMIT_CORE))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        preexec_fn=_allow_cores,
    )  # fmt: skip
    assert run.stdout.split() == ["2", "0", "0", "0"], run.stderr


def _allow_cores() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
