"""All eviction policies of one L1. Each knows all uses, so that any of them can take over."""

from __future__ import annotations

from service.l1.chunk import Chunk
from service.l1.eviction.policies import LeastFrequentlyUsed, Policy, policy_of
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.reuse_times import SAMPLED_PART, ReuseTimes, class_of
from service.l1.eviction.worth import Worth


class PolicySet:
    """A policy of each name, over one `worth` and one `reuse_times`. The clock is that of the eviction order."""

    def __init__(self) -> None:
        self.worth = Worth()
        self.reuse_times = ReuseTimes()
        self._policies = {name: policy_of(name, self.reuse_times, self.worth) for name in PolicyName}
        lfu = self._policies[PolicyName.LFU]
        assert isinstance(lfu, LeastFrequentlyUsed)
        self._lfu = lfu

    def of(self, name: PolicyName) -> Policy:
        """Return the policy of a name; of `AUTO`, the one to begin with."""
        return self._policies[name]

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Note a use of a chunk, for all policies."""
        chunk.num_uses += 1
        chunk.previous_use, chunk.last_use = chunk.last_use, clock
        chunk.policy_note = self._lfu.note_of(chunk)
        if not chunk.key[0] % SAMPLED_PART:
            self.reuse_times.note_use(chunk.key, class_of(chunk.num_uses, chunk.will_continue), clock)
