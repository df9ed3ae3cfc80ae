"""PinPrefix: pins the chunks of a prompt in L1 for a while."""

from __future__ import annotations

from collections.abc import Sequence

from service.depot.ahead import match_ahead
from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.depot import Depot
from service.depot.instances import Instance
from service.depot.match import Match, miss_of_all
from service.depot.values import PinAnswer, PinRequest
from service.l1.keys import ChunkKey, Prefix, chunk_keys


async def pin_prefix(depot: Depot, request: PinRequest) -> PinAnswer:
    """Pin what L1 and the tiers have of a prompt. What comes from a tier is pinned while it loads.

    The decision is one step: the bounds hold also if several calls run. Without a chunk there is no pin.

    Raises: InvalidRequest, InstanceNotFound, BlockHashSeedMissing, PinLimitExceeded.
    """
    instance = depot.instances.named(request.instance_id, request.model_name)
    depot.check_prefix(instance, request.prefix)
    miss = miss_of_all(instance, request.prefix)
    if miss is not None:
        return PinAnswer(pin=None, was_pinned=False, matched_tokens=0, l2_tokens=0, miss=miss)
    key = await _key(depot, instance, request.prefix)

    def admit(match: Match, num_bytes: Sequence[int]) -> int:
        depot.pins.check_bounds(key, match.chunks_by_rank, num_bytes)
        return len(num_bytes)

    match = await match_ahead(depot, instance.instance_id, request.prefix, admit)
    try:
        num_matched, num_from_l2 = match.num_chunks, len(match.from_l2)
        match.name(depot, instance, request.prefix)
        was_pinned = depot.pins.of_key(key) is not None
        pin = None
        if num_matched or was_pinned:
            depot.pins.check_bounds(key, match.chunks_by_rank, ())
            pin = depot.pins.hold(
                key,
                match.take(),
                model_name=instance.model_name,
                adapter=request.prefix.adapter,
                ttl_seconds=min(request.ttl_seconds, depot.limits.pin_ttl_max_seconds),
                is_fixed=request.is_fixed,
            )
    finally:
        match.unpin(depot)
    return PinAnswer(
        pin=pin,
        was_pinned=was_pinned,
        matched_tokens=num_matched * match.chunk_size,
        l2_tokens=num_from_l2 * match.chunk_size,
        miss=match.miss,
    )


async def _key(depot: Depot, instance: Instance, prefix: Prefix) -> ChunkKey:
    """Return the key of rank 0's last whole chunk of a prompt, which has one."""
    pace = depot.slices.pace()
    first_rank = instance.ranks[0]
    keys = chunk_keys(first_rank.identity.namespace(prefix), prefix, first_rank.chunk_size)
    key = next(keys)
    for number, key in enumerate(keys):  # noqa: B007 - the last one
        if number % CHUNKS_PER_STEP == 0 and pace.is_over():
            await pace.next()
    return key
