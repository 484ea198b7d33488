"""What the builder measured is used on machines like his, and nowhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgekit import bundle, host
from edgekit.bundle.model import Serving, VariantConfig
from edgekit.errors import FormatError
from edgekit_agent.messages import Pacing
from edgekit_agent.prepare import advice, tuned
from tests.support.bundles import INFO, Keys, make_config, make_variant

HERE = host.read()
KEYS = Keys()
SERVING = Serving(cores=HERE.cores, threads=1, run_ms=0.5, batch=8, batch_ms=1.5)


def entry(
    serving: Serving | None = SERVING, config: VariantConfig | None = None, **certificate: Any
) -> bundle.VariantEntry:
    """Written and read again."""
    made = {"host_cpu": HERE.cpu, "host_architecture": HERE.architecture, "host_isa": HERE.isa}
    variant = make_variant(
        config or make_config(options={"graph": "all"}), **{**made, "serving": serving, **certificate}
    )
    data, _ = bundle.to_bytes(INFO, [variant], signer=KEYS.signer, recipients=[], encrypt=False)
    (read,) = bundle.open(bytes(data), [KEYS.signer.public()]).variants
    return read


def test_a_machine_like_the_builders_does_as_he_found_best() -> None:
    found = entry()
    assert tuned(found, HERE).options == {"graph": "all", "intra_threads": 1}
    assert advice(found, HERE) == Pacing(0.5, 8, 1.5, engine_version="1.2.3")


@pytest.mark.parametrize(
    "other",
    [
        {"host_cpu": "Another CPU"},
        {"host_isa": ("neon",)},
        {"host_architecture": "arm"},
        {"serving": None},
    ],
)
def test_another_machine_measures_for_itself(other: dict[str, Any]) -> None:
    found = entry(**other)
    assert tuned(found, HERE) == found.config and advice(found, HERE) is None


def test_so_does_one_with_other_cores_or_without_a_name() -> None:
    found = entry()
    for here in (dataclasses.replace(HERE, cores=HERE.cores + 1), dataclasses.replace(HERE, cpu="")):
        assert tuned(found, here) == found.config and advice(found, here) is None


def test_what_was_measured_takes_the_place_of_the_profiles_number() -> None:
    many = dataclasses.replace(SERVING, threads=HERE.cores)
    found = entry(many, make_config(options={"intra_threads": 1}))
    assert tuned(found, HERE).options == {"intra_threads": HERE.cores}
    none = entry(dataclasses.replace(SERVING, threads=0))
    assert tuned(none, HERE) == none.config and advice(none, HERE) is not None


@pytest.mark.parametrize(
    "wrong", [{"cores": 0}, {"threads": HERE.cores + 1}, {"batch": 0}, {"batch": 5000}, {"run_ms": 0.0}]
)
def test_figures_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="out of range"):
        entry(dataclasses.replace(SERVING, **wrong))
