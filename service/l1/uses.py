"""The uses of chunks: each counts once for a request, in the order of eviction and in the ghost caches."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from service.l1.chunk import Chunk
from service.l1.eviction.order import EvictionOrder
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.policy_set import PolicySet
from service.l1.ghosts.ghosts import Ghosts
from service.l1.ghosts.tally import Outcome

CHUNKS_PER_MOVE = 256  # of a change of the policy, at each use of a prompt


class Uses:
    """Counts uses, and with the policy `AUTO` chooses the policy of the `order` by what the ghost caches hit.

    `policy_name` is the policy in use, and `ghosts` are asked about others. `on_policy_change` is called with the
    policy before and the one after a change.
    """

    def __init__(self, policies: PolicySet, ghosts: Ghosts, eviction: PolicyName) -> None:
        self.eviction = eviction
        self.policy_name: PolicyName = PolicyName.LEARNED if eviction is PolicyName.AUTO else eviction
        self.on_policy_change: Callable[[PolicyName, PolicyName], None] = lambda before, after: None
        self.order = EvictionOrder(policies, self.policy_name)
        self.ghosts = ghosts
        self._num_requests = 0

    def __repr__(self) -> str:
        return f"<Uses of {self._num_requests} requests, policy {self.policy_name}>"

    def new_request(self) -> int:
        """Return the number of a request that begins."""
        self._num_requests += 1
        return self._num_requests

    def count(self, chunks: Sequence[Chunk], request: int, *, num_asked: int = 0, will_continue: bool = False) -> None:
        """Count a request's use of chunks of one prompt, if it has not used them before. They have pins.

        A lookup asked for the first `num_asked` of them: those that it did not find were misses. `will_continue` says
        that its session is likely to come again with a longer prompt.
        """
        self._count(chunks[num_asked:], request, Outcome.NOT_ASKED, will_continue)
        self._count(chunks[:num_asked], request, Outcome.MISS, will_continue)

    def count_hits(
        self, chunks: Sequence[Chunk], request: int, from_tiers: Container[int] = (), *, will_continue: bool = False
    ) -> None:
        """Count a request's use of chunks that its lookup found, as `count` does. All are of one namespace.

        Those at the positions `from_tiers` are on their way into L1.
        """
        if from_tiers:
            loading = [chunk for position, chunk in enumerate(chunks) if position in from_tiers]
            self._count(loading, request, Outcome.HIT_IN_TIER, will_continue)
            chunks = [chunk for position, chunk in enumerate(chunks) if position not in from_tiers]
        self._count(chunks, request, Outcome.HIT, will_continue)

    def _count(self, chunks: Sequence[Chunk], request: int, outcome: Outcome, will_continue: bool) -> None:
        """Count a use of chunks of one namespace. The tail of a prompt counts as used before its head."""
        eviction, use_ghosts = self.order, self.ghosts.use
        mask, match = self.ghosts.sampling.mask, self.ghosts.sampling.match
        num_counted = 0
        for chunk in reversed(chunks):
            chunk.will_continue = will_continue
            if chunk.counted_request != request:
                chunk.counted_request = request
                eviction.count_use(chunk)
                num_counted += 1
                if chunk.key[-1] & mask == match:
                    use_ghosts(chunk, outcome, eviction.clock)
            elif chunk.key[-1] & mask == match:
                self.ghosts.touch(chunk)
        if num_counted:
            self.ghosts.note_own(chunks[0].namespace_stats, outcome, num_counted)
            self._choose_policy()

    def _choose_policy(self) -> None:
        if self.order.is_moving:
            self.order.move(CHUNKS_PER_MOVE)
        elif self.eviction is PolicyName.AUTO:
            better = self.ghosts.choice.better_than(self.policy_name)
            if better is not None:
                before, self.policy_name = self.policy_name, better
                self.order.change_policy(better)
                self.on_policy_change(before, better)
