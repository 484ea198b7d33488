"""Every page, asked for over HTTP and parsed as a browser would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from edgekit import codec
from edgekit.wire import DeviceCertificate, JobState
from edgekit_fleet.rollout.strategies import Phase
from edgekit_fleet.web import charts
from tests.unit.fleet.web.site import NEW, OLD, VARIANT, Page, Site, site

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</title></textarea>"


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        made.release(OLD, "kws", "1")
        made.release(NEW, "kws", "2")
        for i in range(4):
            made.device(f"cam-{i}", tags={"site": "lab" if i else "roof"})
            for seq in range(5):
                made.telemetry(f"cam-{i}", seq)
        made.login()
        yield made


def shown(dash: Site, path: str) -> Page:
    status, text, headers = dash.get(path)
    assert status == 200, text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Page(text)
    assert [item.get("src") for item in page.all("script")] == ["/static/live.js"]
    assert page.all("style") == []
    for tag, attributes in page.elements:
        assert "style" not in attributes, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src", "action"):
            assert str(attributes.get(name) or "/").startswith(("/", "#", "?")), (tag, attributes)
    return page


ALL = ("/", "/devices", "/devices/cam-0", "/releases", f"/releases/{OLD}", "/rollouts", "/audit")


@pytest.mark.parametrize("path", ALL)
def test_every_page_reads_without_script(dash: Site, path: str) -> None:
    page = shown(dash, path)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1
    labels = {item.get("for") for item in page.all("label")}
    for field in page.all("input"):
        assert field.get("type") == "hidden" or field.get("id") in labels
    for drawing in page.all("svg"):
        assert drawing.get("aria-label") or drawing.get("aria-hidden")


def test_overview_counts(dash: Site) -> None:
    dash.runs("cam-3", online=False)
    dash.rollout()
    text = " ".join(shown(dash, "/").text.split())
    assert "3 / 4 devices online" in text
    assert "1 rollouts under way" in text
    assert "kws:2" in text


def test_empty_fleet_says_what_to_do(tmp_path: Path) -> None:
    with site(tmp_path) as dash:
        dash.login()
        text = shown(dash, "/").text
        assert "edgekit fleet enroll" in text
        assert "edgekit fleet publish FILE" in text
        for path in ("/devices", "/releases", "/rollouts", "/audit"):
            shown(dash, path)


def test_device_filter(dash: Site) -> None:
    page = shown(dash, "/devices?q=tag%3Asite+%3D%3D+roof")
    assert "cam-0" in page.text
    assert "cam-1" not in page.text
    status, text, _ = dash.get("/devices?q=profile+%3D+x")
    assert status == 400
    assert "column 9" in Page(text).text


def test_device_charts(dash: Site) -> None:
    page = shown(dash, "/devices/cam-1")
    labels = [str(item["aria-label"]) for item in page.all("svg") if "aria-label" in item]
    assert any(label.startswith("Requests per second, latest: rate 50") for label in labels)
    assert any("p50" in label and "p95" in label for label in labels)
    assert any(label.startswith("Failed requests, latest: failed 2 %") for label in labels)
    assert any(label.startswith("Drift, latest: inputs 0.31") for label in labels)
    assert "yes" in page.text
    assert "150 (60.0%)" in page.text


def test_rollout_page_follows_the_rollout(dash: Site) -> None:
    rollout = dash.rollout()
    page = shown(dash, f"/rollouts/{rollout}")
    assert {str(item["action"]) for item in page.all("form")} == {
        f"/rollouts/{rollout}/{verb}" for verb in ("pause", "abort", "rollback")
    }
    canary = dash.report(rollout, JobState.FAILED, stage="PROBE", code="GoldenError", message="1 of 16 agree")
    page = shown(dash, f"/rollouts/{rollout}")
    assert "ROLLED_BACK" in page.text
    assert "PROBE GoldenError 1 of 16 agree" in page.text
    assert f"1 of 1 device(s) failed, 0 allowed ({canary})" in page.text
    assert page.all("form") == []


def test_buttons_need_the_csrf_token(dash: Site) -> None:
    rollout = dash.rollout()
    assert dash.post(f"/rollouts/{rollout}/pause")[0] == 403
    assert dash.post(f"/rollouts/{rollout}/pause", csrf="x" * 43)[0] == 403
    assert "RUNNING" in shown(dash, f"/rollouts/{rollout}").text
    page = shown(dash, f"/rollouts/{rollout}")
    token = next(str(item["value"]) for item in page.all("input") if item.get("name") == "csrf")
    status, _, headers = dash.post(f"/rollouts/{rollout}/pause", csrf=token)
    assert (status, headers["location"]) == (303, f"/rollouts/{rollout}")
    page = shown(dash, f"/rollouts/{rollout}")
    assert "PAUSED" in page.text
    assert f"/rollouts/{rollout}/resume" in {item["action"] for item in page.all("form")}
    assert dash.post(f"/rollouts/{rollout}/pause", csrf=token)[0] == 409
    assert dash.post(f"/rollouts/{rollout}/explode", csrf=token)[0] == 400
    assert dash.post("/rollouts/99/pause", csrf=token)[0] == 404


def test_nobody_reads_without_a_session(dash: Site) -> None:
    dash.headers.clear()
    for path in ALL:
        status, text, headers = dash.get(path)
        assert status == 303
        assert headers["location"].startswith("/login?next=")
        assert "cam-0" not in text
    assert dash.post("/rollouts/1/pause")[0] == 401
    assert dash.get("/static/style.css")[0] == 200
    assert dash.get("/static/live.js")[0] == 200


def test_unknown_things_are_404(dash: Site) -> None:
    for path in ("/devices/nobody", "/releases/nothing", "/rollouts/7", "/rollouts/x", "/nowhere"):
        assert dash.get(path)[0] == 404, path
    assert dash.get("/static/../pages.py")[0] == 404


def test_hostile_strings_stay_text_everywhere(dash: Site) -> None:
    variant = {
        **VARIANT,
        "variant": HOSTILE,
        "profile": HOSTILE,
        "gates": [{**VARIANT["gates"][0], "reason": HOSTILE}],
    }
    third = "sha256:" + "c" * 64
    dash.release(third, HOSTILE[:90], "3", variants=[variant])
    reported = {
        "agent_version": HOSTILE,
        "engines": {HOSTILE: HOSTILE},
        "isa": [HOSTILE],
        "endpoint": "javascript:alert(1)",
    }
    name = 'x"><script>alert(1)<!--'
    dash.device(
        name,
        profile=HOSTILE[:64],
        release=HOSTILE,
        variant=HOSTILE,
        architecture=HOSTILE[:40],
        tags={"a": HOSTILE},
        reported=reported,
    )
    for seq in range(3):
        dash.telemetry(name, seq, classes={HOSTILE: 3}, release=HOSTILE)
    rollout = dash.rollout("kws:2", Phase("all", success=0, errors=99, deadline_s=99))
    dash.report(rollout, JobState.FAILED, stage=HOSTILE, code=HOSTILE, message=HOSTILE)
    seen = 0
    paths = (
        "/",
        "/devices",
        f"/devices/{quote(name, safe='')}",
        "/releases",
        f"/releases/{third}",
        "/rollouts",
    )
    for path in (*paths, f"/rollouts/{rollout}", "/audit"):
        page = shown(dash, path)
        assert page.all("img") == []
        assert page.all("textarea") == []
        seen += page.text.count("<script>alert(1)</script>")
    assert seen > 10, "the hostile strings were not even shown"
    status, text, _ = dash.get(f"/devices?q={quote(HOSTILE)}")
    assert status == 400
    assert Page(text).all("img") == []
    assert "49" not in Page(text).text


def test_audit_page_shows_a_broken_chain(dash: Site) -> None:
    dash.rollout()
    assert "intact" in shown(dash, "/audit").text
    with dash.db.write() as connection:
        connection.exec_driver_sql("UPDATE audit SET detail='{}' WHERE id=1")
    assert "broken from entry 1" in " ".join(shown(dash, "/audit").text.split())


def test_skipped_gate_is_shown(dash: Site) -> None:
    third = "sha256:" + "c" * 64
    dash.release(third, "kws", "3", variants=[{**VARIANT, "gate_skipped": True}])
    assert "skipped" in shown(dash, "/releases").text
    assert "--no-gate" in shown(dash, f"/releases/{third}").text


def test_what_a_stand_in_and_what_a_device_measured(dash: Site) -> None:
    third = "sha256:" + "c" * 64
    unmeasured = {**VARIANT, "engine": "tensorrt", "stand_in": "onnxruntime 1.32.0"}
    dash.release(third, "kws", "3", variants=[unmeasured])
    assert "Not measured on tensorrt" in shown(dash, f"/releases/{third}").text
    certificate = DeviceCertificate(
        "kws:3", "v", third, "tensorrt", HOSTILE, "Cortex-A78AE", "aarch64", ("asimd",), True, 16, 0.01, 1.0,
        0.25, 0.5, 0.75, 300, 41_000.0, 612.5, {"TensorRT": 9}, "2026-11-25T23:00:00+00:00",
    )  # fmt: skip
    dash.device("orin", reported={"certificate": codec.to_plain(certificate)})
    page = shown(dash, "/devices/orin")
    assert page.all("img") == []
    text = " ".join(page.text.split())
    assert "Measured here" in text and "p50 0.250 ms, p95 0.500 ms, 612.5 MiB" in text
    assert "Measured here" not in shown(dash, "/devices/cam-1").text


def test_reports_of_one_instant_are_drawn() -> None:
    now = 1_790_000_000.0  # so large that a nanosecond more is the same float
    drawn = charts.line_chart("Requests", "1/s", [now, now], [charts.Series("rate", [1.0, 2.0])])
    assert "<path" in drawn
