"""`edgekit fleet watch`: what changes in a rollout, line by line, until it has ended."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from edgekit.cli import _fleet_client as client
from edgekit.cli._output import say
from edgekit.errors import SystemFault

POLL_S = 0.5
PATIENCE_S = 60.0
"""How long a fleet that does not answer (it may be restarting) is asked again."""
EXIT_FINISHED, EXIT_OTHERWISE = 0, 3


def watch(to: client.Connection, rollout: int, *, json_lines: bool, timeout_s: float | None) -> int:
    """Write changes until the rollout has ended: 0 when FINISHED, 3 when not. Raises SystemFault."""
    seen: dict[str, tuple[str, str]] = {}
    started = time.monotonic()
    while True:
        found = _ask(to, rollout)
        for what, state, detail in _facts(found):
            if seen.get(what) != (state, detail):
                seen[what] = (state, detail)
                _write(what, state, detail, json_lines)
        if found["ended"]:
            return EXIT_FINISHED if found["state"] == "FINISHED" else EXIT_OTHERWISE
        if timeout_s is not None and time.monotonic() - started > timeout_s:
            hint = "it goes on; watch it again, or abort it"
            raise SystemFault(f"rollout {rollout} is still {found['state']} after {timeout_s:g} s", hint)
        time.sleep(POLL_S)


def _ask(to: client.Connection, rollout: int) -> dict[str, Any]:
    started = time.monotonic()
    while True:
        try:
            answer: dict[str, Any] = client.call(to, "GET", f"/v1/rollouts/{rollout}")
        except SystemFault:
            if time.monotonic() - started > PATIENCE_S:
                raise
            time.sleep(POLL_S)
        else:
            return answer


def _facts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, state, detail) of devices, then groups, then the rollout: causes come first."""
    facts = []
    for group in found["groups"]:
        if group["state"] == "SCHEDULED" and found["state"] in ("RUNNING", "STARTING"):
            continue
        facts += [(job["device"], *job_state(job)) for job in group["jobs"]]
    facts += [(f"phase {group['name']}", group["state"], group["reason"]) for group in found["groups"]]
    return [*facts, (f"rollout {found['id']} ({found['release']})", found["state"], found["reason"])]


def job_state(job: dict[str, Any]) -> tuple[str, str]:
    """A device's part in a few words: (state, detail); its rollback once there is one."""
    back = job.get("back")
    current = back or job
    parts = (current["stage"], current["code"], current["message"])
    detail = " ".join(part for part in parts if part)
    if back:
        return f"rollback {back['state']}", detail
    if job["state"] == "QUEUED" and job["notified_at"] is None:
        return "waiting", ""
    if job["state"] == "QUEUED" and not job["online"]:
        return "QUEUED", "offline"
    return job["state"], detail


def _write(what: str, state: str, detail: str, json_lines: bool) -> None:
    at = time.time()
    if json_lines:
        line = json.dumps({"at": at, "what": what, "state": state, "detail": detail})
    else:
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        line = f"{clock}  {what}: {state}{f' - {detail}' if detail else ''}"
    say(line)
    sys.stdout.flush()
