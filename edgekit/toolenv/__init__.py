"""Isolated tool environments: heavy converters whose pins conflict, each in a virtual environment of its own.

`locks/NAME.txt` pins an environment completely, with hashes; it is made on first use and works offline
afterwards. `scripts/SCRIPT.py` is a standalone program that runs inside: `SCRIPT.py FOLDER` reads
FOLDER/job.json and FOLDER/in/, writes FOLDER/out/ and FOLDER/result.json. A crash there is one line here.
"""

from edgekit.toolenv._install import OWN, Steps, ensure, find_uv, names, versions
from edgekit.toolenv._run import run

__all__ = ["OWN", "Steps", "ensure", "find_uv", "names", "run", "versions"]
