"""The class that SGLang loads. It turns SGLang's calls into those of the depots of its host pools."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolTransfer,
    PoolTransferResult,
)

from kvdepot.connector.config import ConfigError
from kvdepot.connector.event_loop import shared_event_loop
from kvdepot.connector.model_weights import EngineProcess, process_start
from kvdepot.sglang.engine_facts import agreed_id, arguments, sglang_version
from kvdepot.sglang.held_pages import HeldPages
from kvdepot.sglang.hit_policies import Requirement, prefix_hits
from kvdepot.sglang.host_pool import is_equal_in_tensor_ranks, pages_of, share
from kvdepot.sglang.identity import cache_identity, of_pool
from kvdepot.sglang.placement import KV, placement
from kvdepot.sglang.pool_depot import MovedPages, PoolDepot
from kvdepot.sglang.settings import backend_settings

logger = logging.getLogger(__name__)

MAX_STATS = 1_000


class KvdepotHiCache(HiCacheStorage):
    """HiCache's storage in the node's depot. `kvdepot.sglang.settings` has its settings.

    SGLang makes one object in each rank, registers its host pools, and then calls it from several threads. No call
    raises once the pools are registered: what fails is a miss, or a page that was not stored.

    Raises: ConfigError.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        _log_as_sglang_does()
        settings = backend_settings(storage_config.extra_config, os.environ)
        self._config = settings.connector
        self._storage = storage_config
        self._arguments = arguments()
        agreed = agreed_id()
        num_ranks = storage_config.tp_size * storage_config.pp_size * storage_config.attn_cp_size
        if agreed is None and num_ranks > 1 and not settings.instance_id:
            raise ConfigError(
                "the ranks of this engine can't agree on an id. Set kvdepot.instance_id in "
                "--hicache-storage-backend-extra-config to a text that no other engine of the node has"
            )
        self._base_id = settings.instance_id or agreed or uuid.uuid4().hex
        self._identity = cache_identity(
            self._config,
            storage_config,
            self._arguments,
            sglang_version=sglang_version(),
            engine=EngineProcess(agreed or self._base_id, process_start()),
        )
        self._held = HeldPages()
        self._pools: dict[str, PoolDepot] = {}
        self._attach_until = time.monotonic() + self._config.attach_timeout_seconds
        self._loads: deque[MovedPages] = deque(maxlen=MAX_STATS)
        self._stores: deque[MovedPages] = deque(maxlen=MAX_STATS)

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Attach the pool of the KV itself.

        Raises: ConfigError.
        """
        super().register_mem_pool_host(mem_pool_host)
        self._register(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Attach a side pool. The pool of the KV comes a second time here.

        Raises: ConfigError.
        """
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) not in self._pools:
            self._register(str(host_pool_name), host_pool)

    def on_host_pools_registered(self) -> None:
        """Wait for the attachments, until the attach timeout. SGLang then starts without the depot."""
        for name, pool in self._pools.items():
            if not pool.wait_attached(self._attach_until - time.monotonic()):
                logger.warning(
                    "the pool %s is not attached after %g s: SGLang starts", name, self._config.attach_timeout_seconds
                )

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """Return how many of the first pages all ranks have."""
        pool = self._pools.get(KV)
        return pool.exists(_hashes(keys)) if pool is not None else 0

    def batch_get_v1(
        self, keys: list[str], host_indices: Any, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Load pages of the KV. Return for each whether its bytes are right."""
        return self._load(KV, keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Store pages of the KV. Return for each whether the depot has it."""
        return self._store(KV, keys, host_indices)

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """Return how many of the first pages can be restored with what the side pools need."""
        kv = self._pools.get(KV)
        if kv is None:
            return PoolTransferResult.empty()
        required = []
        for transfer in pool_transfers or ():
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                continue  # such a pool has no say in the hit, and none is reported for it
            pool = self._pools.get(str(transfer.name))
            if pool is None:
                return PoolTransferResult.empty()
            is_window = transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES
            window = max(1, len(transfer.keys or ())) if is_window else 0
            required.append(Requirement(str(transfer.name), pool, window))
        hits = prefix_hits(_hashes(keys), KV, kv, required)
        return PoolTransferResult(hits.pages, dict(hits.by_pool), hits.restorable)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Load pages of several pools."""
        return {each.name: self._load(str(each.name), each.keys or [], each.host_indices) for each in transfers}

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Store pages of several pools."""
        return {each.name: self._store(str(each.name), each.keys or [], each.host_indices) for each in transfers}

    def exists(self, key: str) -> bool:
        """Return whether all ranks have a page of the KV."""
        return self.batch_exists([key]) == 1

    # SGLang calls these only without `interface_v1`, and then the backend does not start.

    def get(self, key: str, target_location: Any | None = None, target_sizes: Any | None = None) -> Any:
        """Return None: pages move by `batch_get_v1`."""

    def batch_get(
        self, keys: list[str], target_locations: Any | None = None, target_sizes: Any | None = None
    ) -> list[Any]:
        """Return None for each page: pages move by `batch_get_v1`."""
        return [None] * len(keys)

    def set(
        self,
        key: str,
        value: Any | None = None,
        target_location: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        """Return False: pages move by `batch_set_v1`."""
        return False

    def batch_set(
        self,
        keys: list[str],
        values: Any | None = None,
        target_locations: Any | None = None,
        target_sizes: Any | None = None,
    ) -> bool:
        """Return False: pages move by `batch_set_v1`."""
        return False

    def clear(self) -> bool:
        """Remove all pages of this model from the depot, those of other engines too. Return whether it did."""
        cleared = [pool.clear() for pool in self._pools.values()]  # all of them, also after one failed
        return all(cleared)

    def get_stats(self) -> Any:
        """Return the pages and the rates (GiB/s) of the loads and stores since the last call."""
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:  # SGLang has moved it; it takes None, too
            return None
        metrics = StorageMetrics()
        for moved, pages, rates in (
            (self._loads, metrics.prefetch_pgs, metrics.prefetch_bandwidth),
            (self._stores, metrics.backup_pgs, metrics.backup_bandwidth),
        ):
            while moved:
                each = moved.popleft()
                pages.append(each.pages)
                rates.append(each.num_bytes / 2**30 / each.seconds)
        return metrics

    def close(self) -> None:
        """Detach all pools. Later calls find nothing. Idempotent."""
        for pool in self._pools.values():
            pool.close()
        if not self._held.close():
            logger.warning("the depot may still touch pages: what SGLang frees of them stays out of use")

    def _register(self, name: str, host_pool: Any) -> None:
        place = placement(
            self._base_id,
            self._storage,
            name,
            equal_in_tensor_ranks=is_equal_in_tensor_ranks(host_pool),
            num_nodes=int(getattr(self._arguments, "nnodes", 1) or 1),
        )
        memory = share(host_pool, name)
        if previous := self._pools.pop(name, None):
            previous.close()
        self._held.watch(host_pool)
        self._pools[name] = pool = PoolDepot(
            name,
            host_pool.page_size,
            memory,
            self._config,
            of_pool(self._identity, place.shard, getattr(host_pool, "storage_format_tag", None)),
            place,
            self._held,
            shared_event_loop(),
        )
        pool.attach()

    def _load(self, name: str, keys: Sequence[str], host_indices: Any) -> list[bool]:
        pool, pages = self._pages(name, keys, host_indices)
        if pool is None or not pages:
            return [False] * len(keys)
        loaded, moved = pool.load(_hashes(keys), pages)
        if moved.pages and self._storage.enable_storage_metrics:
            self._loads.append(moved)
        return loaded

    def _store(self, name: str, keys: Sequence[str], host_indices: Any) -> list[bool]:
        pool, pages = self._pages(name, keys, host_indices)
        if pool is None or not pages:
            return [False] * len(keys)
        stored, moved = pool.store(_hashes(keys), pages)
        if moved.pages and self._storage.enable_storage_metrics:
            self._stores.append(moved)
        return stored

    def _pages(self, name: str, keys: Sequence[str], host_indices: Any) -> tuple[PoolDepot | None, list[int]]:
        pool = self._pools.get(name)
        if pool is None:
            return None, []
        pages = pages_of(host_indices, pool.page_size, len(keys))
        if pages is None:
            logger.error("the indices of the pool %s are not those of %d whole pages", name, len(keys))
        return pool, pages or []


def _hashes(keys: Sequence[str]) -> list[bytes]:
    """Return the hashes of pages, which SGLang writes as hexadecimal digits."""
    try:
        return [bytes.fromhex(key) for key in keys]
    except ValueError:
        return [hashlib.sha256(key.encode()).digest() for key in keys]


def _log_as_sglang_does() -> None:
    """Give our loggers SGLang's level, unless the user gave them their own. SGLang's handlers are the root's."""
    ours, theirs = logging.getLogger("kvdepot"), logging.getLogger("sglang")
    if ours.level == logging.NOTSET:
        ours.setLevel(theirs.getEffectiveLevel())
