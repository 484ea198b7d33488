"""Questions to a person on a terminal; without one, the proposals are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from edgekit.errors import EdgekitError, InputError


@dataclass(frozen=True)
class Ask:
    """Where questions go and answers come from."""

    source: TextIO
    sink: TextIO
    interactive: bool

    def tell(self, text: str) -> None:
        """A remark, only for whoever is being asked."""
        if self.interactive:
            self.sink.write(f"{text}\n")

    def line(
        self,
        question: str,
        proposal: str = "",
        *,
        flag: str,
        check: Callable[[str], object] | None = None,
        optional: bool = False,
    ) -> str:
        """One answer; an empty one takes the proposal. What `check` raises is shown, and asked again.

        Raises InputError naming `flag` when nobody can be asked and there is no proposal.
        """
        if not self.interactive:
            if not proposal and not optional:
                raise InputError(f"{question}: not given", f"give {flag}, or run it on a terminal")
            if check and proposal:
                check(proposal)
            return proposal
        while True:
            self.sink.write(f"{question}{f' [{proposal}]' if proposal else ''}: ")
            self.sink.flush()
            text = self.source.readline()
            if not text:
                raise InputError("the answers ended before the questions", f"give {flag}")
            answer = text.strip() or proposal
            if not answer and not optional:
                continue
            try:
                if check and answer:
                    check(answer)
            except EdgekitError as exc:
                self.sink.write(f"  {exc.message}\n" + (f"  {exc.hint}\n" if exc.hint else ""))
                continue
            return answer

    def choice(self, question: str, options: Sequence[str], proposal: str, *, flag: str) -> str:
        """One of `options`."""

        def check(answer: str) -> None:
            if answer not in options:
                raise InputError(f"{answer!r} is none of {', '.join(options)}")

        return self.line(f"{question} ({', '.join(options)})", proposal, flag=flag, check=check)
