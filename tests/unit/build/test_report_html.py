"""The HTML report: complete, self-contained, harmless whatever the names in it say."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekit.build.reporting import pareto, render, text
from edgekit.build.reporting.scale import Axis, axis
from edgekit.errors import InputError

REPORT = json.loads((Path(__file__).parent / "data" / "report.json").read_text())
"""Of a real build of the keyword spotter for two profiles."""
EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\ud800\x1b[2J"


class Page(HTMLParser):
    """Elements, their attributes and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += f" {data}"

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]


def test_everything_of_the_report_is_on_the_page() -> None:
    page = Page(render(REPORT))
    for candidate in REPORT["candidates"]:
        assert candidate["name"] in page.text
        assert candidate["reason"] in page.text
        assert candidate["reproduce"] in page.text
        for gate in candidate["gates"]:
            assert gate["reason"] in page.text
    for wanted in (
        REPORT["digest"],
        REPORT["provenance"]["model"]["sha256"],
        "silence",
        "peak_rss_mib <= 128",
    ):
        assert wanted in page.text
    assert "All 2 profiles have a variant that passes every gate" in page.text
    numbers = {point["data-row"] for point in page.all("a", class_="point")}
    assert numbers == {str(i) for i in range(1, len(REPORT["candidates"]) + 1)}
    assert len(page.all("tr", class_="kept")) == 2


def test_the_page_needs_nothing_but_itself() -> None:
    page = Page(render(REPORT))
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "data:application/json;base64,"))
    assert not [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "form")]
    assert len(page.all("script")) == 1


def test_equal_reports_give_equal_pages() -> None:
    assert render(REPORT) == render(copy.deepcopy(REPORT))


def hostile() -> dict[str, Any]:
    """The report with every text of someone else's replaced."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return EVIL + value if isinstance(value, str) else value

    found: dict[str, Any] = poison(REPORT)
    return {**found, "warnings": [EVIL], "notes": [EVIL]}


def test_names_cannot_leave_their_place() -> None:
    page = Page(render(hostile()))
    clean = Page(render({**REPORT, "warnings": ["a"], "notes": ["b"]}))
    # The same elements with the same attribute names: all that was poison has become text.
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean.elements}
    assert {name for _, a in page.elements for name in a} == {name for _, a in clean.elements for name in a}
    assert len(page.all("script")) == 1
    assert "<script>document.title" in page.text
    for letter in ("\u202e", "\x1b", "\ud800"):
        assert letter not in page.text
    render(hostile()).encode("utf-8")


def test_what_failed_says_so() -> None:
    report = copy.deepcopy(REPORT)
    for candidate in report["candidates"]:
        candidate["kept"] = candidate["kept"] and candidate["profile"] == "intel-nuc"
    broken = report["candidates"][1]
    broken.update(figures=None, error="it crashed", reason="it crashed", gates=[])
    kept = next(one for one in report["candidates"] if one["kept"])
    kept["gates"][0]["passed"] = False
    page = Page(render(report))
    assert "Nothing passes for jetson." in page.text
    assert "ships by --no-gate" in page.text
    assert "not measured" in page.text
    assert "it crashed" in page.text


def test_a_stand_ins_variant_has_a_card_of_its_own() -> None:
    """And it says before anything else that its engine was not measured."""
    report = copy.deepcopy(REPORT)
    mine = [one for one in report["candidates"] if one["profile"] == "jetson" and one["figures"]]
    other = next(one for one in mine if not one["kept"])
    other.update(kept=True)
    other["figures"]["stand_in"] = "onnxruntime"
    before, after = Page(render(REPORT)), Page(render(report))

    def cards(page: Page) -> int:
        return sum((one.get("class") or "").startswith("card ") for one in page.all("article"))

    assert cards(after) == cards(before) + 1
    assert "not measured on its engine: every figure is onnxruntime's on the same graph" in after.text
    assert "not measured on its engine" not in before.text


def test_the_overlay_is_model_explorers_node_data() -> None:
    page = Page(render(REPORT))
    links = [a for a in page.all("a") if (a.get("download") or "").endswith("-sqnr.json")]
    candidates = [one for one in REPORT["candidates"] if one["layers"]]
    assert len(links) == len(candidates)
    address = links[0]["href"] or ""
    data = json.loads(base64.b64decode(address.split(",", 1)[1]))
    first = candidates[0]["layers"][0]
    assert data["results"][first["name"]] == {"value": first["sqnr_db"]}
    assert [stop["stop"] for stop in data["gradient"]] == [0, 0.5, 1]


def test_reports_of_other_versions_are_read() -> None:
    old = copy.deepcopy(REPORT)
    for candidate in old["candidates"]:
        candidate["variant"] = f"{candidate['profile']}.{candidate.pop('name')}"
        for key in ("layers", "options", "runtime_options", "forecast", "reproduce", "pareto"):
            del candidate[key]
        for key in ("per_class", "latency_histogram", "cpu_ms", "emulated"):
            del candidate["figures"][key]
    slim = {"candidates": old["candidates"], "unknown": {"of": "the future"}}
    page = Page(render(slim))
    assert "onnxruntime.int8-s8" in page.text
    assert Page(render({"candidates": []})).text.strip().startswith("build")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({}, "not a build report"),
        ({"candidates": 3}, "not a build report"),
        ({"candidates": ["x"]}, "report"),
        ({"candidates": [{**REPORT["candidates"][0], "kept": "yes"}]}, "kept should be bool"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(report: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        render(report)
    assert "\n" not in str(caught.value)


def test_the_front_is_what_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.9), (4.0, 0.95), (5.0, 0.7), (1.0, 0.6)]
    assert pareto.front(points, higher=True) == [5, 2, 3]
    # An error instead of an accuracy: low is good.
    assert pareto.front([(1.0, 0.5), (2.0, 0.9), (3.0, 0.1)], higher=False) == [0, 2]


def test_axes_hold_their_values_and_have_round_ticks() -> None:
    for values in (
        [0.91, 0.9137],
        [70.2, 146.0],
        [0.2, 2.6],
        [5.0, 5.0],
        [0.0, 0.0],
        [1e-4, 9e3],
        [-3.0, 4.0],
    ):
        found = axis(values, 40, 300, log=True)
        assert all(40 <= found.at(v) <= 300 for v in values)
        ticks = found.ticks()
        assert 1 <= len(ticks) <= 12
        assert all(found.low <= t <= found.high for t in ticks)
    assert Axis(0, 10, 0, 100).ticks(5) == [0, 2, 4, 6, 8, 10]


def test_numbers_for_people() -> None:
    assert [text.number(v) for v in (0.2079, 3.412, 127.4, 20512.0, 0.0, None, float("nan"))] == [
        "0.208", "3.41", "127", "20512", "0", "–", "–",
    ]  # fmt: skip
    assert text.signed(-0.0012) == "−0.0012"
    assert text.common_prefix(["net/block/a", "net/block/b", "net/blob"]) == len("net/")
    assert text.common_prefix(["only/one"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt install chromium")
def test_a_browser_runs_our_script_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(hostile()), encoding="utf-8")
    flags = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    )
    command = [
        "chromium",
        "--headless",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    command.append((tmp_path / "page.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Page(done.stdout)
    assert page.text.count("Copy") >= len(REPORT["candidates"])  # the buttons that our script adds
    assert "<title>owned" not in done.stdout
    assert not page.all("img")
