"""Starts a script in a tool environment: memory bounded, no network where the kernel can take it away.

_start.py MEMORY_MIB SCRIPT FOLDER; standard library only.
"""

import contextlib
import ctypes
import os
import resource
import runpy
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    memory_mib, script, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    limit = memory_mib * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A model that runs code while it is loaded must not reach anybody. Best effort: containers may forbid it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET)
    sys.argv = [script, folder]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
