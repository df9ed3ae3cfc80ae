"""An engine without SGLang and without torch: a host pool in a memfd, and the calls that SGLang makes.

It needs the package `sglang` of tests/fakes/sglang_package.
"""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolHitPolicy, PoolTransfer

from kvdepot.sglang import KvdepotHiCache

PAGE, NUM_PAGES = 8, 6  # the fake depot's chunks have 8 tokens
KEYS = [f"{page:064x}" for page in range(4)]


class MHATokenToKVPoolHost:
    """SGLang's pool of this name, in the layout page_first."""

    def __init__(self) -> None:
        shape = (2, NUM_PAGES * PAGE, 3, 2, 4)
        fd = os.memfd_create("pool")
        os.ftruncate(fd, 4096)
        memory = mmap.mmap(fd, 4096)
        self.layout, self.page_size = "page_first", PAGE
        self.kv_buffer = np.frombuffer(memory, np.int8, int(np.prod(shape))).reshape(shape)
        self.allocator = SimpleNamespace(fds=[fd], mms=[memory])

    def free(self, indices: Any) -> int:
        """Take indices back."""
        return len(indices)

    def clear(self) -> None:
        """Take all indices back."""


class Indices:
    """Indices of tokens, as far as the backend reads a tensor."""

    def __init__(self, *pages: int) -> None:
        self.array = np.concatenate([np.arange(page * PAGE, (page + 1) * PAGE) for page in pages])

    def numel(self) -> int:
        """Return how many there are."""
        return len(self.array)

    def __getitem__(self, which: slice) -> Any:
        return self.array[which]


def play(address: str) -> dict[str, Any]:
    """Attach two pools, make every call once, detach. Return the results."""
    extra = {"interface_v1": 1, "allocator": "shm", "kvdepot.address": address, "kvdepot.model_revision": "1"}
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=True,
        is_page_first_layout=True,
        model_name="model",
        extra_config={**extra, "kvdepot.instance_id": "engine"},
    )
    backend = KvdepotHiCache(config, {})
    pool, side_pool = MHATokenToKVPoolHost(), MHATokenToKVPoolHost()
    backend.register_mem_pool_host(pool)
    backend.register_mem_host_pool_v2(pool, "kv")
    backend.register_mem_host_pool_v2(side_pool, "swa")
    backend.on_host_pools_registered()
    window = PoolTransfer("swa", keys=KEYS[:2], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    groups = PoolTransfer("c4", hit_policy=PoolHitPolicy.BLOCK_GROUPS)
    restored = backend.batch_exists_v2(KEYS, [window, groups])
    results = {
        "stored": backend.batch_set_v1(KEYS[:2], Indices(1, 4)),
        "found": backend.batch_exists(KEYS),
        "loaded": backend.batch_get_v1(KEYS[:2], Indices(5, 0)),
        "restored": [restored.kv_hit_pages, restored.extra_pool_hit_pages, restored.restorable_prefix_pages],
        "unknown pool": backend.batch_exists_v2(KEYS, [PoolTransfer("draft")]).kv_hit_pages,
        "one": backend.exists(KEYS[0]),
        "by value": [backend.get(KEYS[0]), backend.batch_get(KEYS), backend.set(KEYS[0]), backend.batch_set(KEYS)],
        "stats": backend.get_stats(),
        "cleared": backend.clear(),
    }
    backend.close()
    backend.close()
    results["after the end"] = [backend.batch_exists(KEYS), backend.batch_set_v1(KEYS[:1], Indices(1))]
    return results
