"""Build a model of every source format, from an empty cache. Run in a process without a network:

build_offline.py CACHE JOBS.json     (JOBS: [[path, {input: shape}], ...]; prints {path: [format, variant]})
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit.backends import SourceModel
from edgekit.build import sources
from edgekit.build.cache import Cache
from edgekit.build.sources import SourceOptions
from edgekit.runtimes._base import DTYPES


def rows(model: SourceModel, count: int, seed: int) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            spec.name: generator.integers(0, 2, spec.shape[1:]).astype(DTYPES[spec.datatype])
            if DTYPES[spec.datatype].kind != "f"
            else generator.standard_normal(spec.shape[1:]).astype(DTYPES[spec.datatype])
            for spec in model.inputs
        }


def build(path: str, shapes: dict[str, tuple[int, ...]], cache: Path) -> list[str]:
    options = SourceOptions({name: tuple(shape) for name, shape in shapes.items()}, trust=True)
    model = sources.load(Path(path), Cache(cache), options)
    classes = model.outputs[0].shape[-1] > 1
    built = edgekit.build(
        path,
        "generic-cpu",
        calibration=rows(model, 40, 1),
        evaluate=rows(model, 20, 2) if classes else [(row, 0.0) for row in rows(model, 20, 2)],
        metric="agreement" if classes else "mean-absolute-error",
        shapes=options.shapes,
        trust_source=True,
        precisions=["fp32"],  # the quantizers run offline in test_build.py
        effort="quick",
        gate=False,
        robustness=False,
        cache=cache,
    )
    return [model.format, built.variants[0].config.variant]


def main() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"], "there is a network"
    jobs = json.loads(Path(sys.argv[2]).read_text())
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda job: build(job[0], job[1], Path(sys.argv[1])), jobs)
    print(json.dumps({job[0]: one for job, one in zip(jobs, made, strict=True)}))


if __name__ == "__main__":
    main()
