"""What the three programs parse their command lines with: a mistake is an error like any other."""

from __future__ import annotations

import argparse
from typing import NoReturn

from edgekit.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print the usage and exit; so do its sub-commands' parsers."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, f"see `{self.prog} --help`")
