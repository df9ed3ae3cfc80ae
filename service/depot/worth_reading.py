"""What of a prompt is read from tiers sooner than an engine computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from service.depot.instances import Attachment
from service.depot.tier import Tier
from service.l1.chunk import Chunk


@dataclass(slots=True)
class Position:
    """One chunk of the prefix, by rank: what L1 has, None where it has none, and the tiers that have the others."""

    chunks: list[Chunk | None]
    tiers: list[list[Tier]]

    @property
    def readers(self) -> list[Tier | None]:
        """The tier that is to read each chunk first, None for those that L1 has."""
        return [of_chunk[0] if of_chunk else None for of_chunk in self.tiers]


def worth_reading(
    positions: Sequence[Position], attachments: Sequence[Attachment], chunk_size: int, prefill_rate: float
) -> tuple[int, str]:
    """Return how many of the positions are read sooner than the engine computes them, and why not the next one.

    A tier is left out if all that it would read takes longer than to compute these tokens. If it is slower for all
    of them, it is slower for a part: what waits in its queue comes on top.
    """
    why = ""
    while positions:
        num_bytes: Counter[Tier] = Counter()
        num_chunks: Counter[Tier] = Counter()
        for position in positions:
            for attachment, tier in zip(attachments, position.readers, strict=True):
                if tier is not None:
                    num_bytes[tier] += attachment.chunk_bytes
            num_chunks.update({tier for tier in position.readers if tier is not None})
        for tier, count in num_chunks.items():
            read_seconds = tier.seconds_to_read(num_bytes[tier])
            prefill_seconds = count * chunk_size / prefill_rate
            if read_seconds is not None and read_seconds > prefill_seconds:
                break
        else:
            break
        end = next(number for number, position in enumerate(positions) if tier in position.readers)
        why = f"{tier.name} needs {read_seconds:.3g} s, the engine {prefill_seconds:.3g} s for {count} chunks"
        positions = positions[:end]
    return len(positions), why
