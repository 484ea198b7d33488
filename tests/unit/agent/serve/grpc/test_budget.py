"""Memory for what comes in: first come, first served, and nobody gets all of it."""

from __future__ import annotations

import random

from edgekit_agent.serve.grpc.budget import Budget, Lease


def is_held(lease: Lease) -> bool:
    return lease.held


def test_first_come_first_served() -> None:
    budget = Budget(100)
    got: list[str] = []
    a = budget.ask("a", 50, lambda _: got.append("a"))
    b = budget.ask("b", 40, lambda _: got.append("b"))
    c = budget.ask("c", 50, lambda _: got.append("c"))
    d = budget.ask("d", 10, lambda _: got.append("d"))
    assert got == ["a", "b"], "a small one does not overtake one that waits for memory"
    budget.end(b)
    assert got == ["a", "b", "c"]
    budget.end(a)
    assert got == ["a", "b", "c", "d"]
    for lease in (c, d, d, a):
        budget.end(lease)
    assert budget.free == 100


def test_one_owner_gets_half() -> None:
    budget = Budget(100)
    got: list[object] = []
    first = budget.ask("greedy", 40, got.append)
    second = budget.ask("greedy", 40, got.append)
    other = budget.ask("other", 50, got.append)
    assert got == [40, 50] and not is_held(second)
    budget.end(first)
    assert is_held(second)
    budget.end(second)
    budget.end(other)
    assert budget.free == 100


def test_who_gives_up_waits_no_more() -> None:
    budget = Budget(100)
    held = budget.ask("a", 50, lambda _: None)
    full = budget.ask("b", 50, lambda _: None)
    waiting = budget.ask("c", 30, lambda _: None)
    budget.end(waiting)
    budget.end(held)
    assert not waiting.held and budget.free == 50
    budget.end(full)


def test_nothing_is_lost() -> None:
    chance = random.Random(7)
    budget, leases = Budget(1000), [Lease("", 0, print)][:0]
    for _ in range(5000):
        if leases and chance.random() < 0.5:
            budget.end(leases.pop(chance.randrange(len(leases))))
        else:
            leases.append(budget.ask(chance.randrange(5), chance.randrange(1, 500), lambda _: None))
        assert budget.free == 1000 - sum(lease.octets for lease in leases if lease.held) >= 0
    for lease in leases:
        budget.end(lease)
    assert budget.free == 1000
