"""Prefetch: loads the chunks of a prompt from the tiers into L1, ahead of its request."""

from __future__ import annotations

from collections import Counter

from service.depot.ahead import match_ahead
from service.depot.depot import Depot
from service.depot.tier import Tier
from service.depot.values import PrefetchAnswer, PrefetchRequest


async def prefetch(depot: Depot, request: PrefetchRequest) -> PrefetchAnswer:
    """Begin to load what the tiers have of a prompt, and return what is there. It does not wait for the loads.

    When they have ended, the chunks of the match can be evicted, as if they were used at that moment.

    Raises: InvalidRequest, InstanceNotFound, BlockHashSeedMissing, TooManyPrefetches.
    """
    instance = depot.instances.named(request.instance_id, request.model_name)
    depot.check_prefix(instance, request.prefix)
    depot.prefetches.check_running()
    match = await match_ahead(
        depot, instance.instance_id, request.prefix, lambda _, num_bytes: depot.prefetches.admit(num_bytes)
    )
    try:
        depot.prefetches.check_running()  # others may have begun meanwhile
        num_matched, num_from_l2 = match.num_chunks, len(match.from_l2)
        match.name(depot, instance, request.prefix)
        depot.prefetches.begin(instance.model_name, match.take(), (chunk for chunk, _ in match.loads))
    finally:
        match.unpin(depot)
    chunk_size = match.chunk_size
    num_bytes: Counter[Tier] = Counter()
    positions: dict[str, set[int]] = {}
    for chunk, tier in match.loads:
        num_bytes[tier] += chunk.namespace_stats.chunk_bytes
        positions.setdefault(tier.name, set()).add(chunk.position)
    # What waits in a tier's queue, these chunks included, is all that it reads before the last of them is here.
    seconds = [each for each in (tier.seconds_to_read(0) for tier in num_bytes) if each is not None]
    return PrefetchAnswer(
        l1_tokens=(num_matched - num_from_l2) * chunk_size,
        l2_tokens=num_from_l2 * chunk_size,
        loading_bytes=num_bytes.total(),
        loading_tokens={name: len(of_tier) * chunk_size for name, of_tier in positions.items()},
        estimated_seconds=max(seconds, default=None),
        miss=match.miss,
    )
