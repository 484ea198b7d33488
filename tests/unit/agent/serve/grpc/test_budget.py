"""Memory for what comes in: first come, first served, and nobody gets all of it."""

from __future__ import annotations

import random

from edgekit_agent.serve.grpc.budget import Budget, Lease
from edgekit_agent.serve.shares import Share, Shares


class Stand:
    """A budget of 100 octets, 75 for one client at most."""

    def __init__(self, total: int = 100) -> None:
        self.shares = Shares(8, 8, total, lambda: 0)
        self.budget = Budget(self.shares)
        self.got: list[str] = []

    def ask(self, name: str, octets: int, share: Share | None = None) -> Lease:
        return self.budget.ask(share or self.shares.join(name), octets, lambda _: self.got.append(name))


def is_held(lease: Lease) -> bool:
    return lease.held


def test_first_come_first_served() -> None:
    stand = Stand()
    a, b, c, d = (stand.ask(name, size) for name, size in (("a", 50), ("b", 40), ("c", 50), ("d", 10)))
    assert stand.got == ["a", "b"], "a small one does not overtake one that waits for memory"
    stand.budget.end(b)
    assert stand.got == ["a", "b", "c"]
    stand.budget.end(a)
    assert stand.got == ["a", "b", "c", "d"]
    for lease in (c, d, d, a):
        stand.budget.end(lease)
    assert stand.shares._buffered == 0


def test_nobody_waits_for_a_client_that_has_its_share() -> None:
    stand = Stand()
    greedy = stand.shares.join("greedy")
    first, second = stand.ask("1", 40, greedy), stand.ask("2", 40, greedy)
    other = stand.ask("3", 50)
    assert stand.got == ["1", "3"] and not is_held(second)
    stand.budget.end(first)
    assert is_held(second)
    stand.budget.end(second)
    stand.budget.end(other)
    assert stand.shares._buffered == 0


def test_who_gives_up_waits_no_more() -> None:
    stand = Stand()
    held, full, waiting = stand.ask("a", 50), stand.ask("b", 50), stand.ask("c", 30)
    stand.budget.end(waiting)
    stand.budget.end(held)
    assert not is_held(waiting) and stand.shares._buffered == 50
    stand.budget.end(full)


def test_what_others_give_back_is_seen() -> None:
    """HTTP/1.1 holds bytes of the same total."""
    stand = Stand()
    other = stand.shares.join("other")
    assert stand.shares.hold(other, 70)
    lease = stand.ask("a", 40)
    assert not is_held(lease)
    stand.shares.release(other, 70)
    stand.budget.serve()
    assert is_held(lease)


def test_nothing_is_lost() -> None:
    chance = random.Random(7)
    stand = Stand(1000)
    shares = [stand.shares.join(str(number)) for number in range(5)]
    leases: list[Lease] = []
    for _ in range(5000):
        if leases and chance.random() < 0.5:
            stand.budget.end(leases.pop(chance.randrange(len(leases))))
        else:
            leases.append(stand.ask("", chance.randrange(1, 500), chance.choice(shares)))
        assert stand.shares._buffered == sum(lease.octets for lease in leases if lease.held) <= 1000
    for lease in leases:
        stand.budget.end(lease)
    assert stand.shares._buffered == 0
