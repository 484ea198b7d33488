"""What a person sees while a build runs: a live list on a terminal, plain lines otherwise, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    def step(self, text: str) -> AbstractContextManager[None]:
        """A piece of work that begins now and ends with the context; several may be open."""
        ...


class Silent:
    """For --quiet and --json."""

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        del text
        yield


class Lines:
    """One plain line per finished step, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lock = threading.Lock()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        with self.lock:
            self.stream.write(f"{text}  {time.monotonic() - begin:.1f} s\n")
            self.stream.flush()


class Live:
    """Spinners on a terminal, through rich. Use as a context manager around the build."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.bars = Bars(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Live:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        task = self.bars.add_task(text, total=1)
        try:
            yield
        finally:
            self.bars.remove_task(task)
