"""Ranks of SGLang with its real host pools and its real factory, and a real depot. No model runs."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.sglang_wheel import VERSION, import_wheel

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

try:
    import_wheel()
except (OSError, subprocess.SubprocessError) as error:
    pytest.skip(f"the wheel of SGLang {VERSION} can't be fetched: {error!r}", allow_module_level=True)

from sglang.srt.managers.cache_controller import HiCacheController, PrefetchOperation, StorageOperation
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.hicache_storage import (
    STORAGE_BATCH_SIZE,
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.common import get_allocator_from_storage
from sglang.srt.mem_cache.pool_host.dsa import DSAIndexerPoolHost
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.pool_host.mha import AsymmetricMHATokenToKVPoolHost, MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage import StorageBackendFactory

from kvdepot.sglang import KvdepotHiCache

__all__ = [  # the tests import these from here, where it is known whether there is a wheel
    "STORAGE_BATCH_SIZE",
    "DSAIndexerPoolHost",
    "HiCacheController",
    "KvdepotHiCache",
    "MambaPoolHost",
    "PoolHitPolicy",
    "PoolName",
    "PoolTransfer",
    "PrefetchOperation",
    "StorageOperation",
    "get_allocator_from_storage",
]

PAGE = 16
NUM_PAGES = 24
LAYERS, HEADS, HEAD_SIZE, V_SIZE = 3, 2, 8, 4
DTYPE = torch.bfloat16
LAYOUTS = ("layer_first", "page_first", "page_first_direct")
SEED = "kvdepot"


def page_keys(first: int, count: int, text: str = SEED) -> list[str]:
    """Return the hashes of pages as SGLang writes them: chained, in hexadecimal digits."""
    keys, digest = [], hashlib.sha256(text.encode())
    for _ in range(first + count):
        digest = hashlib.sha256(digest.digest())
        keys.append(digest.hexdigest())
    return keys[first:]


def _layers(heads: int, size: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(PAGE, heads, size, dtype=DTYPE) for _ in range(LAYERS))


def _options(layout: str, allocator: str, num_pages: int = NUM_PAGES) -> dict[str, Any]:
    sizes = {"host_to_device_ratio": 2.0, "host_size": 0, "device_capacity_tokens": PAGE, "page_size": PAGE}
    layers = {"start_layer": 0, "end_layer": LAYERS, "host_token_capacity": num_pages * PAGE}
    return {**sizes, **layers, "layout": layout, "pin_memory": False, "allocator_type": allocator}


def heads_pool(layout: str, allocator: str = "shm", *, v_size: int = HEAD_SIZE, num_pages: int = NUM_PAGES) -> Any:
    """Make SGLang's pool of keys and values; with another size of the values, they have tensors of their own."""
    pointers = torch.zeros(LAYERS, dtype=torch.uint64)
    info = MHABufferInfo(
        buffers=KVBuffers(
            k=_layers(HEADS, HEAD_SIZE),
            v=_layers(HEADS, v_size),
            k_data_ptrs=pointers,
            v_data_ptrs=pointers,
            layout=KVBufferLayout.NHD,
        ),
        page_size=PAGE,
        head_num=HEADS,
        head_dim=HEAD_SIZE,
        v_head_dim=v_size,
        dtype=DTYPE,
        device=torch.device("cpu"),
    )
    made = MHATokenToKVPoolHost if v_size == HEAD_SIZE else AsymmetricMHATokenToKVPoolHost
    with host_memory_budget_scope(1 << 30):
        return made(info, **_options(layout, allocator, num_pages))


def latent_pool(layout: str, allocator: str = "shm") -> Any:
    """Make SGLang's pool of latent KV."""
    info = MLABufferInfo(
        buffers=_layers(1, HEAD_SIZE),
        data_ptrs=torch.zeros(LAYERS, dtype=torch.uint64),
        layer_indices=tuple(range(LAYERS)),
        device_layer_num=LAYERS,
        page_size=PAGE,
        kv_lora_rank=HEAD_SIZE - 2,
        qk_rope_head_dim=2,
        kv_cache_dim=HEAD_SIZE,
        dtype=DTYPE,
        device=torch.device("cpu"),
    )
    with host_memory_budget_scope(1 << 30):
        return MLATokenToKVPoolHost(info, target_layer_num=LAYERS, **_options(layout, allocator))


POOLS: dict[str, Callable[..., Any]] = {"heads": heads_pool, "latent": latent_pool}


def buffers(pool: Any) -> list[torch.Tensor]:
    """Return the tensors of a pool."""
    found = pool.kv_buffer
    return list(found) if isinstance(found, (tuple, list)) else [found]


def fill(pool: Any, seed: int) -> None:
    """Write random bytes into all of a pool."""
    generator = torch.Generator().manual_seed(seed)
    for buffer in buffers(pool):
        flat = buffer.view(-1).view(torch.uint8)
        flat.copy_(torch.randint(0, 256, flat.shape, dtype=torch.uint8, generator=generator))


def content(pool: Any, page: int) -> bytes:
    """Return the bytes of a page in an order that no layout changes: K or V, layer, token, head."""
    index, parts = page * PAGE, []
    for buffer in buffers(pool):
        tensor = buffer if buffer.dim() == (6 if pool.layout == "page_first_direct" else 5) else buffer[None]
        match pool.layout:
            case "layer_first":
                part = tensor[:, :, index : index + PAGE]
            case "page_first":
                part = tensor[:, index : index + PAGE].transpose(1, 2)
            case _:
                part = tensor[:, page]
        parts.append(part.contiguous().view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


def indices(pages: Sequence[int], page_size: int = PAGE) -> torch.Tensor:
    """Return the indices of all tokens of pages, as SGLang gives them."""
    return torch.cat([torch.arange(page * page_size, (page + 1) * page_size) for page in pages])


def storage_config(extra_config: dict[str, Any], **changed: Any) -> HiCacheStorageConfig:
    """Return the config of a rank, of one rank unless it is changed."""
    values = {
        **{"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1},
        **{"is_mla_model": False, "enable_storage_metrics": True, "is_page_first_layout": False},
        **{"model_name": "model", "extra_config": extra_config},
        **changed,
    }
    return HiCacheStorageConfig(**values)


def extra_config(address: str, **ours: Any) -> dict[str, Any]:
    """Return what a user writes."""
    return {
        **{"backend_name": "kvdepot", "module_path": "kvdepot.sglang", "class_name": "KvdepotHiCache"},
        **{"interface_v1": 1, "allocator": "shm", "kvdepot.address": address, "kvdepot.model_revision": "1"},
        **{f"kvdepot.{name}": value for name, value in ours.items()},
    }


class Rank:
    """A rank of SGLang: its pools, and the backend that its controller has attached. Calls run in a thread."""

    def __init__(self, pool: Any, config: HiCacheStorageConfig, side_pools: dict[str, Any]) -> None:
        self.pool = pool
        self.backend = StorageBackendFactory.create_backend("dynamic", config, pool)
        self.backend.register_mem_pool_host(pool)
        for name, side_pool in {"kv": pool, **side_pools}.items():
            self.backend.register_mem_host_pool_v2(side_pool, name)
        self.backend.on_host_pools_registered()

    async def store(self, keys: list[str], pages: Sequence[int]) -> list[bool]:
        """Store pages of the KV."""
        return await asyncio.to_thread(self.backend.batch_set_v1, keys, indices(pages))

    async def load(self, keys: list[str], pages: Sequence[int]) -> list[bool]:
        """Load pages of the KV."""
        return await asyncio.to_thread(self.backend.batch_get_v1, keys, indices(pages))

    async def found(self, keys: list[str]) -> int:
        """Return how many of the first pages are there."""
        return await asyncio.to_thread(self.backend.batch_exists, keys)


@asynccontextmanager
async def rank(
    address: str,
    pool: Any,
    *,
    ours: dict[str, Any] | None = None,
    side_pools: dict[str, Any] | None = None,
    **changed: Any,
) -> AsyncIterator[Rank]:
    """Run a rank while the block runs. `ours` are settings, and `changed` are fields of SGLang's config."""
    config = storage_config(extra_config(address, **(ours or {})), **changed)
    made = await asyncio.to_thread(Rank, pool, config, side_pools or {})
    try:
        yield made
    finally:
        await asyncio.to_thread(made.backend.close)
