"""A build's report as one HTML file: no network, no library, readable without scripts.

Everything that is text comes from models, files and profiles of others, so all of it is escaped, and a
content security policy allows exactly the page's own style and script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from edgekit.build.reporting import candidates, closing, pareto, text, verdict
from edgekit.build.reporting.document import Report, parse

__all__ = ["parse", "render"]


def render(report: Mapping[str, Any]) -> str:
    """The report JSON of `edgekit build --json` as an HTML document.

    Equal reports give equal text. Raises InputError naming the field that does not fit.
    """
    return page(parse(report))


def page(report: Report) -> str:
    """The document, head to foot."""
    style, script = _asset("report.css"), _asset("report.js")
    line, tone = verdict.sentence(report)
    title = text.esc(_title(report))
    profiles = "".join(
        f'<section class="profile" id="p{n}"><h2>{text.esc(row.name)}</h2>{pareto.panels(report, row.name)}'
        f"{candidates.table(report, row.name)}{candidates.details(report, row.name)}</section>"
        for n, row in enumerate(report.profile_rows, 1)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        f'<header><p class="kind">edgekit build report</p><h1>{title}</h1>'
        f'<p class="verdict {tone}">{text.esc(line)}</p>{_meta(report)}</header><main>'
        f"{verdict.cards(report)}{_block('Warnings', closing.warnings(report))}{profiles}"
        f"{_block('Certificates', closing.certificates(report))}"
        f"{_block('Provenance', closing.provenance(report))}"
        f"</main><script>{script}</script></body></html>\n"
    )


def _title(report: Report) -> str:
    model = report.provenance.get("model")
    path = model.get("path") if isinstance(model, Mapping) else ""
    return str(report.bundle or path or "build").replace("\\", "/").rsplit("/", 1)[-1]


def _meta(report: Report) -> str:
    size = f"{text.size(report.size_bytes)}" if report.size_bytes else ""
    limits = ", ".join(str(one) for one in report.constraints)
    facts = (
        f"{len(report.candidates)} candidates",
        f"{text.number(report.seconds)} s"
        + (f", {report.cache_hits} results from the cache" if report.cache_hits else ""),
        f"objective {report.objective}" if report.objective else "",
        f"limits {limits}" if limits else "",
        size,
    )
    digest = f'<p class="digest"><code>{text.esc(report.digest)}</code></p>' if report.digest else ""
    return f'<p class="meta">{text.esc(" · ".join(filter(None, facts)))}</p>{digest}'


def _block(title: str, body: str) -> str:
    return f'<section class="block"><h2>{title}</h2>{body}</section>' if body else ""


@cache
def _asset(name: str) -> str:
    return resources.files(__name__).joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, sent or run but what this page holds itself."""
    sources = f"style-src {_source(style)}; script-src {_source(script)}"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
