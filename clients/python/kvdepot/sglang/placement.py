"""The place of a process of SGLang in the depot: the instance and the rank of each of its pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KV = "kv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A rank of an instance, and the part of the model that it holds.

    `shard` is empty if rank and world size say it all. It is part of the cache identity.
    """

    instance_id: str
    rank: int
    world_size: int
    replica: int
    shard: str


def placement(
    base_id: str, storage: Any, pool_name: str, *, equal_in_tensor_ranks: bool = False, num_nodes: int = 1
) -> Placement:
    """Return the placement of one pool. `storage` is SGLang's `HiCacheStorageConfig`; `base_id` is equal in all ranks.

    The tensor and pipeline ranks of an engine are ranks of one instance, one for each rank of data parallelism. If a
    pool is equal in all tensor ranks, each of these is an instance of its own that holds all of it, and the chunks are
    the same ones. If the ranks use several depots, or split the tokens of a page, each rank is an
    instance of its own, and its chunks are named by its `shard`.
    """
    replica, tensor_rank, tensor_size = 0, storage.tp_rank, storage.tp_size
    if equal_in_tensor_ranks:
        replica, tensor_rank, tensor_size = storage.tp_rank, 0, 1
    name = base_id
    if storage.dp_rank:
        name += f"-dp{storage.dp_rank}"
    if replica:
        name += f"-replica{replica}"
    rank, world_size, shard = storage.pp_rank * tensor_size + tensor_rank, storage.pp_size * tensor_size, ""
    if num_nodes > 1 or storage.attn_cp_size > 1:
        shard = f"rank {rank}/{world_size} cp {storage.attn_cp_rank}/{storage.attn_cp_size}"
        name += f"-rank{rank}-cp{storage.attn_cp_rank}"
        rank, world_size = 0, 1
    if pool_name != KV:
        name += f"-{pool_name}"
    return Placement(instance_id=name, rank=rank, world_size=world_size, replica=replica, shard=shard)
