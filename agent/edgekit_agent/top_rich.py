"""The screen of `edgekit-agent top` where rich is installed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgekit_agent.scrape import Figures
from edgekit_agent.top import HEADER, head, rows


def show(series: Iterable[Figures]) -> None:
    """Redraw until the series ends."""
    with Live(auto_refresh=False, screen=True) as live:
        for found in series:
            live.update(screen(found), refresh=True)


def screen(found: Figures) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows(found):
        table.add_row(*map(Text, row), style="dim" if row[0].startswith("  ") else "")
    return Group(*map(Text, head(found)), Text(), table)
