"""What each task is: model, data, metric, and what the issue asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import fastestdet, minilm
from edgekit.build.data import Naming
from edgekit.build.request import Request
from edgekit.build.sources import SourceOptions
from edgekit.profile import Profile

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / ".cache" / "zoo"
KWS_AFFINE = "0.5847029089927673,83"


@dataclass(frozen=True)
class Task:
    """The arguments of a build, and its two expectations."""

    name: str
    model: Path
    calibration: str
    evaluate: str
    metric: str = "accuracy"
    options: dict[str, Any] = field(default_factory=dict)
    """More fields of `edgekit.build.request.Request`."""
    labels: str = "labels"
    trust: bool = False
    known: float = 0.0
    """The metric of fp32 as ../shared/data/*/README.txt records it: what differs is another model."""
    least_speedup: float = 1.0
    """Of the chosen variant over fp32 on the same engine, on a machine with VNNI."""
    weights_dominate: bool = False
    """Its file is mostly weights, so that int8 makes it a quarter."""

    def request(self, board: Profile) -> Request:
        """A build of it for `board`; narrow it with dataclasses.replace."""
        return Request(
            model=self.model,
            profiles=(board,),
            calibration=self.calibration,
            evaluate=self.evaluate,
            source=SourceOptions(trust=self.trust),
            naming=Naming({}, self.labels),
            metric=self.metric,
            **self.options,
        )


def kws() -> Task:
    rows = DATA / "kws-dscnn" / "kws01_eval.npz"
    return Task(
        "kws-dscnn",
        DATA / "kws-dscnn" / "kws_fp32.onnx",
        f"{rows}[0:200]",
        f"{rows}[200:1000]",
        options={"affine": (KWS_AFFINE,)},
        labels="y",
        known=0.9125,
    )


def resnet20() -> Task:
    pictures = DATA / "cifar10-jpeg"
    return Task(
        "resnet20",
        DATA / "cifar10-resnet20" / "resnet20.onnx",
        f"{pictures / 'train_5000.tar'}[0:300]",
        str(pictures / "test_2000.tar"),
        options={"image": "imagenet"},
        known=0.8135,
        least_speedup=2.0,
        weights_dominate=True,
    )


def detector() -> Task:
    """Truth is fp32's own boxes: the photos have no labels."""
    folder = CACHE / "fastestdet"
    if not (folder / "evaluation.npz").exists():
        fastestdet.main(DATA / "fastestdet", folder)
    return Task(
        "fastestdet",
        DATA / "fastestdet" / "FastestDet.onnx",
        str(folder / "calibration.npz"),
        str(folder / "evaluation.npz"),
        metric="f1-agreement",
        options={"decode": f"{ROOT / 'benchmarks' / 'zoo' / 'fastestdet.py'}:boxes"},
        known=1.0,
    )


def sentences() -> Task:
    files = minilm.prepare(DATA, CACHE)
    return Task(
        "MiniLM",
        files["model"],
        f"{files['calibration']}[0:100]",
        str(files["evaluation"]),
        metric="spearman",
        known=0.8203,
        least_speedup=2.0,
        weights_dominate=True,
    )


def tabular() -> Task:
    """scikit-learn's own digits: calibrated on rows 0-199, judged on the others."""
    rows = CACHE / "digits.npz"
    if not rows.exists():
        from sklearn.datasets import load_digits  # nncf brings it

        digits = load_digits()
        np.savez(rows, x=digits.data.astype(np.float32), labels=digits.target.astype(np.int64))
    return Task(
        "tabular",
        DATA / "tabular" / "digits_mlp.joblib",
        f"{rows}[0:200]",
        f"{rows}[200:1797]",
        trust=True,
        known=0.9869,
    )


TASKS = {
    "kws-dscnn": kws,
    "resnet20": resnet20,
    "fastestdet": detector,
    "MiniLM": sentences,
    "tabular": tabular,
}
