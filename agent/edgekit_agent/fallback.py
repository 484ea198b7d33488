"""When a release that was committed crashes again and again: back to the one before it, for good.

A release on probation (its job is in hand) is rolled back by its watch instead. The store's `current` is
what a restart serves, so it is changed in one transaction before the old release is handed out; the fleet
sees another release in the device's report, and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgekit.errors import EdgekitError
from edgekit_agent.prepare import Prepared
from edgekit_agent.store import Release, Store

log = logging.getLogger("edgekit.agent.fallback")

_TEXT, _OF = "fell_back", "fell_back_to"


def fall_back(store: Store, reload: Callable[[Release], Prepared], failed: Prepared) -> Prepared | None:
    """The release before `failed`, now the device's current one; None when there is none, or not now.

    `reload` brings a release's ciphertext from the disk into memory.
    """
    current, previous = store.release("current"), store.release("previous")
    if store.active() is not None or current is None or previous is None:
        return None
    if (current.assignment.release, current.variant) != (failed.release, failed.variant):
        return None
    try:
        before = reload(previous)
        with store.transaction():
            store.set_release("current", previous)
            store.set_release("previous", None)
            store.set(_TEXT, f"{failed.release} crashed again and again, {before.release} serves instead")
            store.set(_OF, previous.assignment.bundle_digest)
    except EdgekitError as exc:
        log.error("cannot go back to %s: %s", previous.assignment.release, exc)
        return None
    return before


def notice(store: Store) -> str:
    """Why the current release is not the one that was assigned last; empty when it is."""
    current = store.release("current")
    fell = current is not None and current.assignment.bundle_digest == store.get(_OF)
    return store.get(_TEXT) if fell else ""
