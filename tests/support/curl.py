"""The curl lines of the README and the documents, run as they stand; only the address is the test's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(curl [^`]+)`")
_PREFIX = "curl "


def lines() -> list[str]:
    """Each line of a block that begins with curl, and each `curl ...` in a sentence."""
    found: list[str] = []
    for page in (_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        for block in _BLOCK.findall(text):
            words = (line.removeprefix("$ ") for line in block.splitlines())
            found += [line for line in words if line.startswith(_PREFIX)]
        found += _SPAN.findall(_BLOCK.sub("", text))
    return list(dict.fromkeys(found))


def with_a_file(line: str) -> bool:
    """Sends a recording, picture or text to a model with a pipeline: tests/e2e/test_pipelines.py."""
    return bool(re.search(r"Content-Type: (audio|image|text)/", line))


def model(line: str) -> str:
    """The model that a line asks."""
    found = re.search(r"/(?:models|predictions)/(\w+)", line)
    assert found, line
    return found[1]


def run(line: str, address: str, folder: Path = _ROOT) -> tuple[int, str]:
    """Status and output of the line, in a shell in `folder`."""
    command = line.replace(_PREFIX, f"{_PREFIX}-sS --max-time 60 -w '\\n%{{http_code}}' ", 1)
    command = command.replace("localhost:8000", address)
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output, _, status = done.stdout.rpartition("\n")
    return int(status), output
