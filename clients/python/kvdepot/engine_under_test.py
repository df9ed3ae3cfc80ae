"""What the factory of `kvdepot check-engine MODULE:FACTORY` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvdepot.memory.regions import Regions
from kvdepot.v1.cache_pb2 import KvGroup, MemoryRegion


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUnderTest:
    """One rank of an engine: what it attaches with, and where it keeps KV itself, so that the two can be compared.

        def engine() -> EngineUnderTest:
            group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(kv_caches, shared)
            planes = [(kv[0], kv[1]) for kv in kv_caches]  # as the attention of the engine reads them
            return EngineUnderTest(groups=[group], regions=shared, planes=[planes])

    `planes[group][layer]` has the arrays of a layer: K and V, or the latent, or K and V as one. Each is a view
    `[num_blocks, block_size, num_heads, head_size]` of NumPy, or of torch on the CPU. `regions` is a `SharedRegions`,
    or its `regions` where something else keeps the memory alive. A factory returns a list for an engine of several
    ranks. A small engine does: the blocks of two chunks are enough. `model_revision` and `block_hash_seed` are what the
    engine attaches with, the same for all ranks.
    """

    groups: Sequence[KvGroup]
    regions: Regions | Sequence[MemoryRegion]
    planes: Sequence[Sequence[Sequence[Any]]]
    model_revision: str = ""
    block_hash_seed: str = ""
