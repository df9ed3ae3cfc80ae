"""The choice of a policy: the one whose ghost cache of L1's size saves most, if it is clear that it does."""

from __future__ import annotations

from array import array

import numpy as np

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.sizes import CHOSEN_AMONG, OF_L1
from service.l1.ghosts.tally import NUM_PARTS, standard_errors

USES_PER_LOOK = 512
"""After so many sampled uses the policies are compared."""

LOOKS_PER_HALF_LIFE = 8
MIN_USES = 4_096
LOOKS_IN_A_ROW = 4
STANDARD_ERRORS = 5.0  # estimated from eight parts only
MIN_MARGIN = 0.005
"""Of the prefill time of all that was asked for: what another policy must save more."""

_KEPT_PER_LOOK = 0.5 ** (1 / LOOKS_PER_HALF_LIFE)
_OFFSETS = [(1 << OF_L1[name], number * NUM_PARTS) for number, name in enumerate(CHOSEN_AMONG)]
BITS = sum(bit for bit, _ in _OFFSETS)


class Choice:
    """Compares what the policies save in seconds of prefill, over the last uses of sampled chunks.

    Half of what it knows is from the last 4,096 of them. Another policy is chosen if it saves more at four looks in a
    row, by more than chance and `MIN_MARGIN` explain.
    """

    def __init__(self) -> None:
        self._saved = array("d", bytes(8 * len(CHOSEN_AMONG) * NUM_PARTS))  # since the last look
        self._asked = 0.0
        self._num_uses = 0
        self._next_look = MIN_USES
        self._recently_saved = np.zeros((len(CHOSEN_AMONG), NUM_PARTS))
        self._recently_asked = 0.0
        self._candidate: PolicyName | None = None
        self._num_looks = 0

    def __repr__(self) -> str:
        return f"<Choice after {self._num_uses} uses, {self._candidate} was better at {self._num_looks} looks>"

    def note(self, residence: int, different: int, part: int, seconds: float) -> None:
        """Note a use of a sampled chunk that was asked for, and what a hit saves.

        `different` are the bits of the ghost caches that differ from the depot itself, and `residence` those that hold
        the chunk.
        """
        self._num_uses += 1
        self._asked += seconds
        if different & BITS:
            for bit, offset in _OFFSETS:
                if different & bit:
                    self._saved[offset + part] += seconds if residence & bit else -seconds

    def better_than(self, policy: PolicyName) -> PolicyName | None:
        """Return the policy to use instead of this one; None: this one is as good as any."""
        if self._num_uses < self._next_look:
            return None
        self._next_look = self._num_uses + USES_PER_LOOK
        self._recently_saved = self._recently_saved * _KEPT_PER_LOOK + np.array(self._saved).reshape(-1, NUM_PARTS)
        self._recently_asked = self._recently_asked * _KEPT_PER_LOOK + self._asked
        self._saved = array("d", bytes(8 * len(self._saved)))
        self._asked = 0.0
        best = CHOSEN_AMONG[int(self._recently_saved.sum(axis=1).argmax())]
        if best is not self._candidate:
            self._candidate, self._num_looks = best, 0
        if not self._is_clear(best, policy):
            self._num_looks = 0
            return None
        self._num_looks += 1
        return best if self._num_looks >= LOOKS_IN_A_ROW else None

    def _is_clear(self, better: PolicyName, policy: PolicyName) -> bool:
        saved = dict(zip(CHOSEN_AMONG, self._recently_saved, strict=True))
        # The depot's own hits are 0 here. A small ghost cache of its policy may hit less than the depot itself does.
        more = saved[better] - (saved[policy] if saved[policy].sum() > 0 else 0.0)
        noise = STANDARD_ERRORS * float(standard_errors(more))
        return float(more.sum()) > max(noise, MIN_MARGIN * self._recently_asked)
