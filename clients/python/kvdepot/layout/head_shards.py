"""Shards of the heads of a paged KV buffer: each has some of the heads of all blocks, in the same memory."""

from __future__ import annotations

from kvdepot.errors import invalid
from kvdepot.v1.cache_pb2 import PLANE_KIND_LATENT, KvGroup


def head_shards(group: KvGroup, num_shards: int) -> tuple[KvGroup, ...]:
    """Return one group for each shard, in the order of the heads. All shards have as many heads.

    Nothing is copied: the shards name other bytes of the same regions.

    Raises: InvalidArgument: the heads can't be divided by `num_shards`, or belong together (a latent, a state).
    """
    if any(plane.kind == PLANE_KIND_LATENT for plane in group.planes):
        raise invalid("group", "has a latent, which belongs to all heads and can't be split")
    if group.holds_state:
        raise invalid("group", "holds states, which belong to all heads and can't be split")
    if num_shards < 1 or group.num_heads % num_shards:
        raise invalid("group", f"has {group.num_heads} heads, which can't be split into {num_shards} equal shards")
    return tuple([_shard(group, number, group.num_heads // num_shards) for number in range(num_shards)])


def _shard(group: KvGroup, number: int, num_heads: int) -> KvGroup:
    shard = KvGroup()
    shard.CopyFrom(group)
    shard.num_heads = num_heads
    for plane in shard.planes:
        plane.offset_bytes += number * num_heads * group.head_stride_bytes
    return shard
