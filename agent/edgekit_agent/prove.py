"""Prove a candidate in a child process, where a crash, a hang or a leak costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError
from edgekit_agent import launch
from edgekit_agent.guard import EXCESS
from edgekit_agent.messages import Loaded
from edgekit_agent.prepare import Prepared

_PROBES = ThreadPoolExecutor(2, "probe")


def probe(
    release: Prepared, timeout_s: float, keep_going: Callable[[], None], *, certify: bool = True
) -> Loaded:
    """Load `release` and repeat its golden samples in a child process, where a crash costs nothing.

    A variant that its builder could not measure on the target is measured here (`Loaded.measured`), if
    `certify`: it takes up to three seconds.
    `keep_going` is called several times a second and raises to stop; the probe then ends on its own and
    closes `release`. Raises GoldenError, EngineError (also for a crash or a hang).
    """
    message, descriptors = release.message(
        1, certify=certify and not release.entry.certificate.measured_on_target
    )
    budget = release.entry.config.memory_budget_mib
    future: Future[Loaded] = _PROBES.submit(
        launch.probe, message, descriptors, timeout_s=timeout_s, memory_mib=_bound_mib(budget)
    )
    while True:
        try:
            answer = future.result(timeout=0.2)
            break
        except NotYet:
            pass
        try:
            keep_going()
        except BaseException:
            future.add_done_callback(lambda _: release.close())
            raise
    if not answer.ok:
        raise error_of(answer)
    return answer


def _bound_mib(budget_mib: float) -> int:
    """Private memory that a probe may have: what serving may have, and the stacks of an engine's threads,
    which count in full although they are hardly used. 0: no bound."""
    return int(EXCESS * budget_mib) + 64 + 16 * (os.cpu_count() or 1) if budget_mib else 0


def error_of(answer: Loaded) -> EdgekitError:
    """The error that serving reported, by its class name."""
    kind = getattr(errors, answer.code, EngineError)
    if not (isinstance(kind, type) and issubclass(kind, EdgekitError)):
        kind = EngineError
    return kind(answer.message or "serving could not load the release", answer.hint)
