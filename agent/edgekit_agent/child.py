"""`python -m edgekit_agent.child PARENT SCORE MODULE ...`: how serving processes and probes begin.

Ties the process to its supervisor (PARENT, a process id) before anything heavy is imported, so that no child
outlives a supervisor that dies meanwhile; SCORE tells the kernel whom to choose when memory runs out. Then
`main` of MODULE gets the other arguments.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress

from edgekit_agent import process


def main(arguments: list[str]) -> int:
    parent, score, module, *rest = arguments
    with suppress(OSError):  # a container may not let us
        process.first_to_die(int(score))
    process.harden(int(parent))
    status: int = importlib.import_module(module).main(rest)
    return status


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # engines' threads and destructors have nothing to add
