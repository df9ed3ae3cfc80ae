"""`auto`: the depot changes to a policy that hits more on its traffic, and reports that."""

from __future__ import annotations

import random

from service.depot.depot import DepotLimits
from service.depot.tenant_depots import TenantDepots
from service.l1.eviction.policy_name import PolicyName
from telemetry.events import Event, EvictionPolicyChanged
from tests.service.l1.ghosts.traffic import Traffic


def begins_with_lru() -> tuple[Traffic, list[tuple[PolicyName, PolicyName]]]:
    """Return traffic on a depot that chooses its policy, and that had chosen LRU; and its changes from then on."""
    traffic = Traffic(256, PolicyName.AUTO)
    traffic.index.uses.policy_name = PolicyName.LRU
    traffic.index._eviction.change_policy(PolicyName.LRU)
    traffic.index._eviction.move(1)
    changes: list[tuple[PolicyName, PolicyName]] = []
    traffic.index.uses.on_policy_change = lambda before, after: changes.append((before, after))
    return traffic, changes


def test_a_loop_ends_lru_once_and_then_l1_hits() -> None:
    traffic, changes = begins_with_lru()
    for number in range(12_000):
        traffic.request([number % 400])
    assert [before for before, _ in changes] == [PolicyName.LRU]
    assert traffic.index.uses.policy_name is changes[0][1]
    hit_before = traffic.num_hit
    for number in range(2_000):
        traffic.request([number % 400])
    assert traffic.num_hit - hit_before > 200
    traffic.index.check()


class Published:
    """A publisher that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)


def test_a_change_is_published() -> None:
    published, (traffic, _) = Published(), begins_with_lru()
    TenantDepots(memoryview(bytearray(1)), None, DepotLimits(), published, traffic.index)  # type: ignore[arg-type]
    for number in range(12_000):
        traffic.request([number % 400])
    [event] = [event for event in published.events if isinstance(event, EvictionPolicyChanged)]
    assert (event.policy, event.previous_policy) == (traffic.index.uses.policy_name, PolicyName.LRU)


def test_uses_at_random_change_nothing() -> None:
    traffic, changes = begins_with_lru()
    rng = random.Random(3)
    for _ in range(12_000):
        traffic.request([rng.randrange(400)])
    assert changes == []
    assert traffic.num_hit > 0


def test_a_policy_that_was_named_never_changes() -> None:
    traffic = Traffic(256, PolicyName.LRU)
    for number in range(12_000):
        traffic.request([number % 400])
    assert traffic.index.uses.policy_name is PolicyName.LRU
    assert traffic.num_hit == 0
