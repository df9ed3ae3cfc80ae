"""A vLLM engine of one scheduler and one worker that does nothing but call its connector, as vLLM 0.32 does.

It needs the package `vllm` of tests/fakes/vllm_package, or the real one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.v1.core.sched.scheduler import Scheduler

from kvdepot.vllm import KvdepotConnector
from tests.fakes.vllm import BLOCK, FullAttentionSpec, Group, KvCacheConfig, Pool, Request, vllm_config
from tests.fakes.waiting import wait_until

NUM_BLOCKS = 32

StepBlocks = tuple[list[int], ...]


class KvCacheManager:
    """vLLM's; it empties its prefix cache, or refuses while blocks are in use."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def reset_prefix_cache(self) -> bool:
        return not self._pool.kept


def config_of(address: str, engine_id: str, **changes: Any) -> Any:
    settings = {"kvdepot.address": address, "kvdepot.share_memory_by": "fd"}
    transfer = {"engine_id": engine_id, "is_kv_producer": True, "kv_connector_extra_config": settings}
    parallel = {"rank": 0, "world_size": 1, "pipeline_parallel_size": 1}
    config = vllm_config(**changes)
    vars(config.kv_transfer_config).update(transfer)
    vars(config.parallel_config).update(parallel)
    return config


class StubEngine:
    """Passes metadata between its scheduler and its worker in pickles, as vLLM does between processes."""

    def __init__(
        self,
        address: str,
        engine_id: str,
        *,
        settings: dict[str, Any] | None = None,
        block_size: int = BLOCK,
        **changes: Any,
    ) -> None:
        config = config_of(address, engine_id, **changes)
        config.kv_transfer_config.kv_connector_extra_config.update(settings or {})
        self.block_size = block_size
        caches = KvCacheConfig(NUM_BLOCKS, [Group(["layer.0"], FullAttentionSpec(block_size=block_size))])
        caches.hash_block_size = block_size  # type: ignore[attr-defined]
        self.pool = Pool(NUM_BLOCKS)
        self.worker = KvdepotConnector(config, KVConnectorRole.WORKER, caches)
        self.cache = self.register()
        self.scheduler = KvdepotConnector(config, KVConnectorRole.SCHEDULER, caches)
        self.scheduler.bind_gpu_block_pool(self.pool)
        self.kv_cache_manager = KvCacheManager(self.pool)
        self.scheduler.bind_kv_cache_manager(self.kv_cache_manager)
        self.vllm_scheduler = Scheduler(self.kv_cache_manager)
        self.requests: dict[str, Request] = {}
        self.tables: dict[str, StepBlocks] = {}
        self.loaded: set[str] = set()
        self.failed: set[str] = set()
        self.invalid_blocks: set[int] = set()

    def register(self) -> torch.Tensor:
        """Give the worker a new KV cache, [blocks, heads, tokens, content]."""
        self.cache = torch.rand(NUM_BLOCKS, 2, self.block_size, 8)
        self.worker.register_kv_caches({"layer.0": self.cache})
        return self.cache

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.scheduler.on_new_request(request)

    def match(self, request: Request, num_computed_tokens: int = 0) -> tuple[int, bool]:
        """Make steps until the connector returns how many tokens it can load."""
        found: list[tuple[int | None, bool]] = []

        def is_known() -> bool:
            self.step()
            found.append(self.scheduler.get_num_new_matched_tokens(request, num_computed_tokens))
            return found[-1][0] is not None

        wait_until(is_known)
        num_tokens, is_asynchronous = found[-1]
        assert num_tokens is not None
        return num_tokens, is_asynchronous

    def allocate(self, request: Request, block_ids: list[int], num_external_tokens: int) -> None:
        self.tables[request.request_id] = (block_ids,)
        blocks = SimpleNamespace(get_block_ids=lambda: (block_ids,))
        self.scheduler.update_state_after_alloc(request, blocks, num_external_tokens)

    def step(
        self,
        scheduled: dict[str, int] | None = None,
        *,
        new: Sequence[str] = (),
        cached: Sequence[tuple[str, StepBlocks | None]] = (),
        resumed: Sequence[str] = (),
        change: Callable[[Any], None] = lambda commands: None,
    ) -> None:
        """Make a step of the scheduler and the worker; ``change`` may change the commands on their way."""
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled or {},
            kv_connector_block_state=SimpleNamespace(get_block_ids=self.tables.get),
            scheduled_new_reqs=[SimpleNamespace(req_id=each, block_ids=self.tables[each]) for each in new],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[each for each, _ in cached],
                new_block_ids=[block_ids for _, block_ids in cached],
                resumed_req_ids=set(resumed),
            ),
            has_sync_kv_loads=False,
        )
        metadata = pickle.loads(pickle.dumps(self.scheduler.build_connector_meta(output)))
        for request_id, num_tokens in (scheduled or {}).items():
            self.requests[request_id].num_computed_tokens += num_tokens
        change(metadata.commands)
        self.worker.bind_connector_metadata(metadata)
        self.worker.start_load_kv(None)
        self.worker.wait_for_layer_load("layer.0")
        self.worker.save_kv_layer("layer.0", self.cache, None)
        self.worker.wait_for_save()
        results: KVConnectorTransferResults = self.worker.get_transfer_results(set())
        self.loaded |= results.finished_recving
        self.failed |= results.failed_recving
        self.invalid_blocks |= self.worker.get_block_ids_with_load_errors()
        report = pickle.loads(pickle.dumps(self.worker.build_connector_worker_meta()))
        self.worker.clear_connector_metadata()
        self.scheduler.update_connector_output(SimpleNamespace(kv_connector_worker_meta=report))

    def run_idle(self) -> None:
        """Make steps without requests for as long as the connector wants them."""

        def is_idle() -> bool:
            self.step()
            return not self.scheduler.has_pending_push_work()

        wait_until(is_idle)

    def finish(self, request: Request) -> None:
        found = self.scheduler.request_finished(request, self.tables[request.request_id][0])
        assert found == (False, None), "vLLM frees the blocks"
        self.run_idle()

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()
