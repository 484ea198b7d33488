"""`edgekit build` without flags, or with `--settings FILE`: flags from a settings file."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from edgekit.build import settings
from edgekit.errors import ConfigError, InputError

FLAG = "--settings"


def expand(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words of `edgekit build` with a settings file's flags put before the given ones, which win.

    `edgekit.toml` is read when nothing at all is given. `parser` is build's own. Raises ConfigError for
    a flag that build does not have.
    """
    rest, path = list(words[1:]), ""
    if not rest and Path(settings.FILE).is_file():
        path = settings.FILE
    for i, word in enumerate(rest):
        if word == FLAG or word.startswith(f"{FLAG}="):
            path = word.partition("=")[2] if "=" in word else "".join(rest[i + 1 : i + 2])
            del rest[i : i + (1 if "=" in word else 2)]
            if not path:
                raise InputError(f"{FLAG}: name the file", f"e.g. {FLAG} {settings.FILE}")
            break
    if not path:
        return list(words)
    flags = settings.load(Path(path))
    known = [o[2:] for action in parser._actions for o in action.option_strings if o.startswith("--")]
    for key in flags:
        if key not in ("model", *known):
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(f"{path}: build has no {key!r}", f"did you mean {near[0]!r}?" if near else "")
    return [words[0], *settings.words(flags), *rest]
