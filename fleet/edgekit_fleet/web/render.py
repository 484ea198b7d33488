"""Templates, filters and the headers of every page. Autoescape is on: device strings are hostile."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from edgekit_fleet.web import charts

HERE = Path(__file__).parent
HEADERS = {
    # No inline script or style anywhere; data goes nowhere else; nobody may frame a page with buttons.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(name: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """The template `name` as a response."""
    text = _ENVIRONMENT.get_template(name).render(now=time.time(), **context)
    return HTMLResponse(text, status_code=status, headers=HEADERS)


def ago(at: float | None) -> Markup:
    """A moment as people say it, with the exact one in the title."""
    if at is None:
        return Markup("never")
    exact = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    seconds = time.time() - at
    text = f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"
    return Markup('<time datetime="{e}" title="{e}">{}</time>').format(text, e=exact)


def span(seconds: float) -> str:
    """ "5 s", "3 min", "2 h", "4 days"."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def bytes_(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def share(value: float) -> str:
    return f"{value:.1%}"


def state_class(state: str) -> str:
    """CSS class of a state: its colour. Every state is written out, too."""
    good = {"FINISHED", "SUCCEEDED", "online"}
    bad = {"FAILED", "ERROR", "TIMED_OUT", "REJECTED", "ROLLED_BACK", "ROLLING_BACK", "STOPPED", "revoked"}
    busy = {"RUNNING", "SOAKING", "IN_PROGRESS", "STARTING", "STOPPING", "PAUSED", "WAITING_FOR_APPROVAL"}
    names = (("good", good), ("bad", bad), ("busy", busy))
    return next((name for name, states in names if state in states), "quiet")


def progress(devices: dict[str, int]) -> Markup:
    """A rollout's or a phase's devices as one bar."""
    order = (("good", "succeeded"), ("bad", "failed"), ("busy", "in_progress"), ("quiet", "canceled"))
    label = ", ".join(f"{devices[key]} {key.replace('_', ' ')}" for _, key in order)
    parts = [(name, devices[key]) for name, key in order]
    return charts.progress_bar(f"{label} of {devices['total']}", [*parts, ("nothing", devices["queued"])])


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=ago, span=span, bytes=bytes_, share=share, state_class=state_class, progress=progress
    )
    return environment


_ENVIRONMENT = _environment()
