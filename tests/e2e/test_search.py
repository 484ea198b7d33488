"""The search on a real model: what is tried, what is not, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from edgekit import profile
from edgekit.build import dryrun, gates, pipeline, reporting
from edgekit.build.cache import Cache
from edgekit.build.request import Request
from edgekit.cli import main
from edgekit.errors import GateError, InputError, ProfileError

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
DATA = ROOT.parent / "shared" / "data" / "kws-dscnn" / "kws01_eval.npz"

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("search")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def request(**changes: object) -> Request:
    from edgekit.build.data import Naming

    plain = Request(
        model=KWS / "kws_fp32.onnx",
        profiles=(profile.get("generic-cpu"),),
        calibration=f"{DATA}[0:100]",
        evaluate=f"{DATA}[200:500]",
        naming=Naming(labels="y"),
        affine=("0.5847029089927673,83",),
        engines=("onnxruntime",),
        precisions=("fp32", "int8"),
        objective="size",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_the_report_tells_the_whole_story(
    cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["build", str(KWS / "kws_fp32.onnx"), "--profile", "generic-cpu", "--engine", "onnxruntime"]
    words += ["--calibration", f"{DATA}[0:100]", "--evaluate", f"{DATA}[200:500]", "--labels", "y"]
    words += ["--affine", "0.5847029089927673,83", "--precision", "fp32", "--precision", "int8"]
    words += ["--objective", "size", "--max", "peak_rss_mib=500", "--json", "--no-encrypt"]
    words += ["--cache", str(cache.folder), "--output", str(tmp_path / "a.edgekit")]
    assert main(words) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["metric"] == {"name": "accuracy", "unit": "share", "higher_is_better": True}
    assert report["objective"] == "size_mib"
    assert report["constraints"] == ["peak_rss_mib <= 500"]
    assert report["graph"]["macs"] == 2_656_768  # MLPerf Tiny states 2.7 M
    assert report["provenance"]["evaluation"]["rows"] == 300
    kept = [c for c in report["candidates"] if c["kept"]]
    assert len(kept) == 1
    assert kept[0]["pareto"]
    figures = kept[0]["figures"]
    assert sum(figures["latency_histogram"]["counts"]) == figures["latency"]["runs"]
    assert sum(row["samples"] for row in figures["per_class"]) == 300
    assert kept[0]["forecast"]["memory_mib"] > 76
    (certificate,) = report["certificates"]
    assert [one["disturbance"] for one in certificate["robustness"]] == ["noise", "brightness", "shift"]
    for one in certificate["robustness"]:
        assert one["samples"] == 200
        assert abs(one["value"] - one["baseline"]) < 0.1  # int8 suffers as fp32 does
        assert 0.9 < one["baseline_clean"] < 0.95
    assert "<dt>with noise</dt>" in reporting.render(report)
    assert main(["inspect", str(tmp_path / "a.edgekit"), "--certificate", "all"]) == 0
    shown = capfd.readouterr().out
    assert "With noise its accuracy goes from 0.9" in shown
    assert "lie outside the calibrated range" in shown
    again = shlex.split(kept[0]["reproduce"])[1:]
    again[again.index("--output") + 1] = str(tmp_path / "b.edgekit")
    assert main([*again, "--cache", str(cache.folder), "--json"]) == 0
    repeated = json.loads(capfd.readouterr().out)
    assert [c["variant"] for c in repeated["candidates"]] == [kept[0]["variant"]]


def test_a_limit_that_nothing_meets_refuses_and_names_it(cache: Cache) -> None:
    limit = gates.constraint("size_mib=0.001", is_maximum=True)
    with pytest.raises(GateError, match=r"int8.*0\.0\d+ > 0\.001 MiB"):
        pipeline.build(request(constraints=(limit,)), cache)


def test_what_cannot_fit_on_the_device_is_refused_before_it_is_built(cache: Cache) -> None:
    base = profile.get("generic-cpu")
    small = dataclasses.replace(base, hardware=dataclasses.replace(base.hardware, ram_mib=40))
    with pytest.raises(GateError, match=r"not built: needs about 7\d MiB of memory, generic-cpu allows 40"):
        pipeline.build(request(profiles=(small,)), cache)


def test_a_spent_time_budget_keeps_what_there_is_and_says_what_was_left(cache: Cache) -> None:
    report = pipeline.build(request(time_budget_s=0.001), cache)
    assert len(report.variants) == 1
    assert any("not tried, the time budget is spent" in note for note in report.notes)


def test_agreement_with_fp32_needs_no_labels(cache: Cache) -> None:
    report = pipeline.build(request(metric="agreement"), cache)
    (variant,) = report.variants
    assert variant.certificate.metric == "agreement"
    assert variant.certificate.baseline_accuracy.value == 1.0
    assert variant.certificate.accuracy.value > 0.97


def test_a_users_metric_and_decoder(cache: Cache, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "import numpy as np\n"
        "def logits(outputs):\n"
        "    (scores,) = outputs.values()\n"
        "    return {'logits': np.log(scores + 1e-9)}\n"
        "def margin(outputs, truth, reference):\n"
        "    scores = np.sort(outputs['logits'], axis=1)\n"
        "    return (scores[:, -1] - scores[:, -2] > 0.1).astype(float)\n"
    )
    report = pipeline.build(request(metric=f"{code}:margin", decode=f"{code}:logits"), cache)
    assert report.variants[0].certificate.metric == f"{code}:margin"
    assert 0.9 < report.variants[0].certificate.accuracy.value <= 1


def test_building_on_dask_gives_the_same_bytes(cache: Cache) -> None:
    here = pipeline.build(request(), cache)
    there = pipeline.build(request(executor="dask"), Cache(None))
    assert [v.files for v in here.variants] == [v.files for v in there.variants]


def test_a_dry_run_forecasts_and_builds_nothing(cache: Cache) -> None:
    found = dryrun.plan(request(precisions=()), cache)
    assert found.seconds > 0
    first = [line for line in found.lines if line.when == "first"]
    assert {line.candidate.split(".")[2].split("-")[0] for line in first} >= {"fp32", "int8"}
    assert "MiB and ms are forecasts" in dryrun.text(found)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"objective": "beauty"}, InputError, "no objective is called 'beauty'"),
        ({"metric": "acuracy"}, InputError, "no metric is called 'acuracy'"),
        ({"engines": ("tensorflow",)}, ProfileError, "no candidate at fp32, int8, tensorflow"),
        ({"executor": "slurm"}, InputError, "no such executor"),
    ],
)
def test_what_is_not_known_says_what_is(
    cache: Cache, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pipeline.build(request(**changes), cache)
