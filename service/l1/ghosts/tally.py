"""Counts of what ghost caches hit, of one tenant and model."""

from __future__ import annotations

from array import array
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from service.l1.ghosts.sizes import ALL_BITS, GHOSTS, TIER_BITS

NUM_PARTS = 8
"""The sample is in parts, by key. How much they differ says how uncertain their sum is."""

ASKED_TOKENS, HIT_TOKENS, L1_TOKENS, ALL_TIERS_TOKENS = range(4)
NUM_COUNTS = 4
NUM_FIELDS = NUM_COUNTS + len(GHOSTS) * NUM_PARTS


class Outcome(IntEnum):
    """How L1 answered a use of a chunk. Only a prompt's chunks are asked for; those of an answer are only stored."""

    NOT_ASKED = 0
    MISS = 1
    HIT = 2
    HIT_IN_TIER = 3


_HITS_OF = {Outcome.MISS: 0, Outcome.HIT: ALL_BITS, Outcome.HIT_IN_TIER: TIER_BITS}


class Tally:
    """Counts since the start. `fields` has the `NUM_COUNTS` ones, and then for each ghost cache one for each part.

    The latter are tokens: those that only the ghost cache hit, less those that only the depot itself hit, each times
    the weight of the sample. The depot knows its own hits exactly. So what a ghost cache would have hit is the depot's
    own hits and this difference. A key that is used very often, and hits everywhere, is in no difference: it does not
    matter whether it is in the sample. `L1_TOKENS` and `ALL_TIERS_TOKENS` are these own hits, chunk by chunk.

    `chunk_size`, `bytes_per_token` and `prefill_tokens_per_second` are those of the last chunk. The last one is None if
    no engine has said it.
    """

    def __init__(self) -> None:
        self.fields = array("d", bytes(8 * NUM_FIELDS))
        self.chunk_size = 256
        self.bytes_per_token = 0.0
        self.prefill_tokens_per_second: float | None = None

    def note_lookup(self, asked_tokens: int, hit_tokens: int) -> None:
        """Note what a lookup asked for and hit, in all tiers."""
        self.fields[ASKED_TOKENS] += asked_tokens
        self.fields[HIT_TOKENS] += hit_tokens

    def note_own(self, outcome: Outcome, num_tokens: float) -> None:
        """Note how the depot itself answered uses of chunks, whether they are sampled or not."""
        if outcome is Outcome.HIT:
            self.fields[L1_TOKENS] += num_tokens
        if outcome >= Outcome.HIT:
            self.fields[ALL_TIERS_TOKENS] += num_tokens

    def note_sampled(self, outcome: Outcome, residence: int, active_bits: int, part: int, weighted: float) -> int:
        """Note a use of a sampled chunk that was asked for, which the ghost caches of these bits hold.

        Return the bits of the ghost caches that differ from the depot itself.
        """
        fields = self.fields
        different = (residence ^ _HITS_OF[outcome]) & active_bits
        left = different
        while left:
            bit = left & -left
            left ^= bit
            number = NUM_COUNTS + (bit.bit_length() - 1) * NUM_PARTS + part
            fields[number] += weighted if residence & bit else -weighted
        return different


def differences(fields: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the differences in tokens, by ghost cache and part."""
    return fields[..., NUM_COUNTS:].reshape(*fields.shape[:-1], len(GHOSTS), NUM_PARTS)


def standard_errors(by_part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard error of the sums over the last axis, by how much the parts differ."""
    errors: npt.NDArray[np.float64] = np.sqrt(NUM_PARTS * by_part.var(axis=-1, ddof=1))
    return errors
