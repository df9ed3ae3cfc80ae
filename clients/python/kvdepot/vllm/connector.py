"""The class that vLLM loads. It turns vLLM's calls into those of `kvdepot.connector`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.version import __version__ as vllm_version

from kvdepot.connector.cache_groups import reported_group
from kvdepot.connector.commands import StepCommands
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.identity import CacheIdentity
from kvdepot.connector.model_weights import EngineProcess, process_start
from kvdepot.connector.request_limits import RequestParameters
from kvdepot.connector.sides import ConnectedScheduler, open_worker
from kvdepot.connector.worker import ConnectorWorker
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.engine_changes import follow_engine
from kvdepot.vllm.engine_facts import engine_facts, hash_block_size
from kvdepot.vllm.engine_values import VllmBlockReferences, request_traits
from kvdepot.vllm.kv_events import events_of
from kvdepot.vllm.loggers import log_as_vllm_does
from kvdepot.vllm.memory import share
from kvdepot.vllm.metadata import ReportMetadata, StepMetadata
from kvdepot.vllm.metrics import KvdepotPromMetrics, KvdepotStats, register
from kvdepot.vllm.model_identity import cache_identity, lora_settings, model_identity, state_settings
from kvdepot.vllm.model_revision import model_revision
from kvdepot.vllm.support import block_hash_seed, check_engine, warn_of_hashes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class KvdepotConnector(KVConnectorBase_V1, SupportsHMA):
    """The connector to the node's depot. `ConnectorConfig` has its settings.

    vLLM makes one object in its scheduler, which has `_scheduler`, and one in each worker, which has `_worker`.

    Raises: ConfigError, Unsupported.
    """

    _cache_hit_source = CacheHitSource.HOST
    _scheduler: ConnectedScheduler
    _worker: ConnectorWorker

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        log_as_vllm_does()
        transfer = self._kv_transfer_config
        self._config = ConnectorConfig.of(
            transfer.kv_connector_extra_config, os.environ, source="kv_connector_extra_config"
        )
        check_engine(vllm_config, kv_cache_config, self._config.head_shards)
        parallel = vllm_config.parallel_config
        model_name = cache_identity(
            model_identity(
                vllm_config,
                vllm_version=vllm_version,
                configured_name=self._config.model_name,
                environment=os.environ,
            ),
            kv_cache_config,
            has_all_layers=parallel.pipeline_parallel_size == 1,
            state_settings=state_settings(vllm_config, os.environ),
        )
        if self._is_scheduler:
            warn_of_hashes(vllm_config, os.environ)
            self._make_scheduler(CacheIdentity(model_name=model_name))  # only workers attach, with the rest of it
        else:
            identity = CacheIdentity(
                model_name=model_name,
                model_revision=model_revision(
                    vllm_config,
                    # A user may have fixed the engine's id. The other one is vLLM's own, and new with each start.
                    engine=EngineProcess(
                        f"{transfer.engine_id}-{getattr(vllm_config, 'instance_id', '')}", process_start()
                    ),
                    configured=self._config.model_revision,
                ),
                block_hash_seed=block_hash_seed(vllm_config, os.environ, hash_block_size(kv_cache_config)),
            )
            facts = engine_facts(vllm_config, kv_cache_config, identity)
            self._worker = open_worker(self._config, facts, parallel.rank, _recorded_event)

    def _make_scheduler(self, identity: CacheIdentity) -> None:
        self._facts = facts = engine_facts(self._vllm_config, self._kv_cache_config, identity)
        self._adapters = adapters = Adapters(lora_settings(self._vllm_config))
        parameters = RequestParameters()
        self._scheduler = ConnectedScheduler(
            self._config, facts, lambda request: request_traits(request, adapters, parameters)
        )

    @property
    def requires_kv_delivery(self) -> bool:
        """False: this is a cache, and the engine computes missing KV again."""
        return False

    @property
    def _is_scheduler(self) -> bool:
        return self.role is KVConnectorRole.SCHEDULER

    # vLLM calls these in its scheduler.

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._is_scheduler:
            follow_engine(kv_cache_manager, self._scheduler, self._adapters)

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        if self._is_scheduler:
            self._scheduler.bind(VllmBlockReferences(gpu_block_pool))

    def set_xfer_handshake_metadata_pp_aware(self, metadata: Mapping[tuple[int, int], Any]) -> None:
        """Ignore it: within a MultiConnector it is for another connector. Our workers report with the steps."""

    def on_new_request(self, request: Request) -> None:
        self._scheduler.arrived(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        num_tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return num_tokens, bool(num_tokens)  # all loads are asynchronous

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(self, request: Request, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """Return the tokens from the depot's memory and those from tiers behind it, which vLLM calls disk."""
        num_l2_tokens = min(self._scheduler.num_l2_tokens(request), num_external_tokens)
        sources = {CacheHitSource.HOST: num_external_tokens - num_l2_tokens, CacheHitSource.DISK: num_l2_tokens}
        return {source: count for source, count in sources.items() if count}

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        state = scheduler_output.kv_connector_block_state
        cached = scheduler_output.scheduled_cached_reqs
        new_blocks = [(new.req_id, new.block_ids, True) for new in scheduler_output.scheduled_new_reqs]
        new_blocks += [
            (request_id, block_ids, request_id in cached.resumed_req_ids)
            for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True)
            if block_ids is not None
        ]
        commands = self._scheduler.step(
            scheduler_output.num_scheduled_tokens,
            state.get_block_ids if state is not None else lambda _: None,
            new_blocks,
            may_store=not scheduler_output.has_sync_kv_loads,
        )
        return StepMetadata(commands)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        metadata = connector_output.kv_connector_worker_meta
        if isinstance(metadata, ReportMetadata):
            self._scheduler.reported(metadata.report)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Return False: vLLM frees the blocks, and running stores keep theirs by references of their own."""
        self._scheduler.finished(request)
        return False, None

    def take_events(self) -> Iterable[Any]:
        facts, group = self._facts, reported_group(self._facts.groups)
        if group is None:
            return ()
        changes = self._scheduler.take_block_changes()
        return list(events_of(changes, group, facts.groups[group].block_size, facts.hash_block_size))

    def has_pending_push_work(self) -> bool:
        return self._is_scheduler and self._scheduler.needs_steps()

    def reset_cache(self) -> bool | None:
        """Reset the scheduler. vLLM calls this for resets that it carries out; `resets` notices all of them."""
        if self._is_scheduler:
            self._scheduler.reset()
        return True

    # vLLM calls these in its workers.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._worker.attach(lambda: share(kv_caches, self._kv_cache_config, self._config.share_memory_by))

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self._worker.load(self._commands().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: requests are not scheduled before their load has ended."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: whole blocks are stored, which `wait_for_save` begins."""

    def wait_for_save(self) -> None:
        self._worker.store(self._commands().stores)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return failed loads by request. Then the depot may still write to their blocks, so that vLLM takes others."""
        loaded, failed = self._worker.results.take_loaded()
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that partial loads did not fill. vLLM goes on before the first one of each request.

        vLLM calls this after `get_transfer_results`. It takes blocks from caches of a single group only; with several
        ones, no load is partial.
        """
        return self._worker.results.take_invalid_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = None if self._is_scheduler else self._worker.results.take_report()
        return ReportMetadata(report) if report is not None else None

    def _commands(self) -> StepCommands:
        commands: StepCommands = self._get_connector_metadata().commands
        return commands

    # vLLM calls these in both.

    def get_kv_connector_stats(self) -> KvdepotStats | None:
        """Return what has happened since the last call. Workers report to the scheduler, which counts."""
        if not self._is_scheduler or (snapshot := self._scheduler.take_statistics()).is_empty:
            return None
        return KvdepotStats(snapshot.values)

    def shutdown(self) -> None:
        if self._is_scheduler:
            self._scheduler.close()
        else:
            self._worker.close()

    # vLLM calls these in its frontends.

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KvdepotStats:
        return KvdepotStats(data if data is not None else {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KvdepotPromMetrics:
        register(cls)
        return KvdepotPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _recorded_event() -> Any:
    """Return an event of this moment on the device's current stream, which another process can wait for."""
    import torch

    event = torch.cuda.Event(interprocess=True)
    event.record()
    return event
