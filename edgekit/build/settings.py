"""`edgekit.toml`: the flags of a build in a file, so that `edgekit build` alone repeats it.

    [build]
    model = "kws.onnx"
    profile = ["jetson"]
    calibration = "kws.npz[0:200]"

Keys are flags without their dashes; "model" is the argument. A list repeats its flag, true stands for a flag
without a value. Paths are as on the command line: from the current folder.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError

FILE = "edgekit.toml"
MAX_BYTES = 1 << 20
Value = str | int | float | bool | tuple[str, ...]


def load(path: Path) -> dict[str, Value]:
    """Flags by name, without leading dashes, in the file's order. Raises ConfigError naming file and key."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than any settings file")
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"cannot read {path}: {exc.strerror or exc}", "`edgekit init` writes one; or give flags"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from None
    table = plain.get("build")
    if set(plain) != {"build"} or not isinstance(table, dict):
        other = next((name for name in plain if name != "build"), "nothing")
        raise ConfigError(f"{path}: expected the table [build] and no other, found {other!r}")
    return {key.replace("_", "-"): _value(path, key, item) for key, item in table.items()}


def _value(path: Path, key: str, item: Any) -> Value:
    if isinstance(item, list) and all(isinstance(one, str) for one in item):
        return tuple(item)
    if isinstance(item, str | int | float | bool):
        return item
    raise ConfigError(f"{path}: {key} should be text, a number, true, false or a list of texts")


def words(flags: Mapping[str, Value]) -> list[str]:
    """The same as words of a command line, the model first."""
    found: list[str] = []
    for key, value in flags.items():
        if key == "model":
            model = str(value)
            found.insert(0, f"./{model}" if model.startswith("-") else model)
        elif value is True:
            found.append(f"--{key}")
        elif value is not False:
            for one in value if isinstance(value, tuple) else (value,):
                # A value that begins with a dash would be taken for a flag.
                found += [f"--{key}={one}"] if str(one).startswith("-") else [f"--{key}", str(one)]
    return found


def text(flags: Mapping[str, Value], comment: Sequence[str] = ()) -> str:
    """A settings file with these flags. `load` of it gives them back."""
    lines = [*(f"# {line}" for line in comment), "[build]"]
    lines += [f"{key} = {_toml(value)}" for key, value in flags.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    # TOML's basic strings, numbers and booleans are JSON's, except that DEL must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
