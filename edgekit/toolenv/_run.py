"""Run one script inside a tool environment: bounded in memory and time, without a network or secrets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError
from edgekit.files import storage_fault
from edgekit.toolenv._install import Steps, ensure

_SCRIPTS = Path(__file__).parent / "scripts"
_START = _SCRIPTS / "_start.py"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""Nothing else of the environment is inherited: tokens and keys lie there."""
_SILENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
MARK = "edgekit: "
"""Lines on stderr that begin so are progress for a person; the rest is only kept for the error line."""


def run(
    env: str,
    script: str,
    job: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    *,
    memory_mib: int = 8192,
    timeout_s: float = 900.0,
    progress: Steps | None = None,
    on_line: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The script's result and output files.

    `files` appear under FOLDER/in: bytes are written, a Path (file or folder) is copied. `memory_mib`
    bounds the private memory of each of its processes (RLIMIT_DATA). `on_line` gets its progress lines.
    Raises EngineMissing when the environment cannot be made, EngineError, in one line, for whatever
    happened inside.
    """
    python = ensure(env, progress)
    name = f"{env}/{script}" if env else script
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-tool-") as scratch:
            folder = Path(scratch)
            _fill(folder, job, files)
            command = [str(python), "-I", "-P", str(_START), str(memory_mib), str(_SCRIPTS / f"{script}.py")]
            code, last = _attend([*command, str(folder)], folder, name, timeout_s, on_line)
            return _result(folder, name, code, last)
    except OSError as exc:
        raise storage_fault(Path(exc.filename or tempfile.gettempdir()), exc) from None


def _fill(folder: Path, job: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> None:
    for sub in ("in", "out", "home"):
        (folder / sub).mkdir()
    (folder / "job.json").write_text(json.dumps(dict(job)))
    for name, content in files.items():
        place = folder / "in" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, place, symlinks=True)  # a link stays a link: nothing outside comes in
        else:
            shutil.copyfile(content, place)


def _attend(
    command: list[str], folder: Path, name: str, timeout_s: float, on_line: Callable[[str], None] | None
) -> tuple[int, str]:
    """Exit code and last line on stderr."""
    lines: deque[str] = deque(maxlen=30)
    quiet = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "home"), "PYTHONHASHSEED": "0"}
    inherited = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**inherited, **quiet, **_SILENT},
        start_new_session=True,
        text=True,
        errors="replace",
    ) as child:
        reader = threading.Thread(target=_read, args=(child.stderr, lines, on_line), daemon=True)
        reader.start()
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineError(f"{name} took more than {timeout_s:.0f} s") from None
        finally:
            if child.poll() is None:  # its own helpers too: they are in its session, and nothing else is
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        reader.join(5.0)
    return code, lines[-1] if lines else ""


def _read(stream: Any, lines: deque[str], on_line: Callable[[str], None] | None) -> None:
    for line in stream:
        text = line.strip()
        if on_line and text.startswith(MARK):
            on_line(text.removeprefix(MARK))
        elif text:
            lines.append(text)


def _result(folder: Path, name: str, code: int, last: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    document = folder / "result.json"
    if code or not document.is_file():
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise EngineError(f"{name} {how}{': ' if last else ''}{last[:300]}")
    result: dict[str, Any] = json.loads(document.read_bytes())
    if "error" in result:
        raise EngineError(str(result["error"]), str(result.get("hint", "")))
    out = folder / "out"
    paths = sorted(path for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    return result, {str(path.relative_to(out)): path.read_bytes() for path in paths}
