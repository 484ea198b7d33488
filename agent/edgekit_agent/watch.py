"""Watch a release that was just swapped in: its own errors, latency and crashes."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgekit.wire import LATENCY_BOUNDS_MS, Assignment
from edgekit_agent.health import Limits, Seen, violation
from edgekit_agent.messages import ReleaseStats
from edgekit_agent.supervisor import Supervisor

POLL_S = 0.25


def watch(
    supervisor: Supervisor, assignment: Assignment, restart_limit: int, keep_going: Callable[[], None]
) -> str:
    """Poll for `assignment.watch_s`; why the release must go, or empty when it may stay.

    `keep_going` is called at each poll and raises to stop.
    """
    limits = Limits(assignment.max_error_rate, assignment.max_latency_p95_ms, restart_limit)
    restarts = supervisor.restarts
    before = _read(supervisor, assignment.release)
    seen = Seen()
    ends = time.monotonic() + assignment.watch_s
    while True:
        over = time.monotonic() >= ends
        keep_going()
        now = _read(supervisor, assignment.release)
        if now is not None:
            seen = _add(seen, before, now, supervisor.restarts - restarts)
            before = now
        else:
            seen = Seen(seen.requests, seen.errors, seen.latency_buckets, supervisor.restarts - restarts)
        # A release that is not serving at the end of its watch has not passed it.
        final = over and now is not None
        if problem := violation(seen, limits, final=final):
            return problem
        if final:
            return ""
        if time.monotonic() > ends + _GRACE_S:
            return "serving does not answer"
        time.sleep(min(POLL_S, max(0.01, ends - time.monotonic())))


_GRACE_S = 15.0


def _read(supervisor: Supervisor, release: str) -> ReleaseStats | None:
    """The release's counters; None unless it is the one that is served now."""
    stats = supervisor.stats()
    if stats is None or stats.serving != release:
        return None
    return next((r for r in stats.releases if r.release == release), _nothing(release))


def _nothing(release: str) -> ReleaseStats:
    return ReleaseStats(release, 0, 0, 0, 0, (0,) * (len(LATENCY_BOUNDS_MS) + 1), 0.0, {})


def _add(seen: Seen, before: ReleaseStats | None, now: ReleaseStats, restarts: int) -> Seen:
    """Counters of a serving process that was started again begin at zero."""
    if before is None or now.requests < before.requests or restarts != seen.restarts:
        before = _nothing(now.release)
    buckets = zip(seen.latency_buckets, before.latency_buckets, now.latency_buckets, strict=True)
    return Seen(
        requests=seen.requests + now.requests - before.requests,
        errors=seen.errors + now.errors - before.errors,
        latency_buckets=tuple(total + new - old for total, old, new in buckets),
        restarts=restarts,
    )
