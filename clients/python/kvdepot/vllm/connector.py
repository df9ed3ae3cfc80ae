"""The class that vLLM loads: it hands vLLM's calls to the scheduler's side or to the worker's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
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

from kvdepot.connector.commands import StepCommands, WorkerReport
from kvdepot.connector.event_loop import shared_event_loop
from kvdepot.connector.scheduler_client import SchedulerCalls
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.config import ConnectorConfig
from kvdepot.vllm.groups import cache_groups, reported_group
from kvdepot.vllm.identity import instance_ids, place_of
from kvdepot.vllm.model_identity import cache_identity, lora_settings, model_identity
from kvdepot.vllm.resets import follow
from kvdepot.vllm.scheduler import SchedulerSettings, SchedulerSide
from kvdepot.vllm.support import check_engine, warn_of_hashes
from kvdepot.vllm.worker import WorkerSide

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
    """Keeps KV in the node's depot. Its settings are `kvdepot.vllm.config.ConnectorConfig`.

    Raises:
        ConfigError: a setting is wrong.
        Unsupported: the engine is one that it does not serve.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _log_as_vllm_does()
        config = ConnectorConfig.of(self._kv_transfer_config.kv_connector_extra_config, os.environ)
        check_engine(vllm_config, kv_cache_config)
        parallel = vllm_config.parallel_config
        num_replicas = getattr(kv_cache_config, "kv_tp_replicas", 1)
        engine_id = self._kv_transfer_config.engine_id
        model_name = cache_identity(
            model_identity(
                vllm_config,
                engine_id=engine_id,
                vllm_version=vllm_version,
                weights_name=config.model_name,
                environment=os.environ,
            ),
            kv_cache_config,
            has_all_layers=parallel.pipeline_parallel_size == 1,
        )
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            warn_of_hashes(vllm_config, os.environ)
            groups = cache_groups(kv_cache_config)
            settings = SchedulerSettings(
                hash_block_size=kv_cache_config.hash_block_size or groups[0].block_size,
                groups=groups,
                num_blocks=kv_cache_config.num_blocks,
                num_workers=parallel.world_size,
                loads=self._kv_transfer_config.is_kv_consumer,
                stores=self._kv_transfer_config.is_kv_producer,
                lookup_timeout_seconds=config.lookup_timeout_seconds,
                lease_hold_seconds=config.lease_hold_seconds,
                longest_operation_seconds=max(config.retrieve_timeout_seconds, config.store_timeout_seconds),
            )
            instances = instance_ids(engine_id, num_replicas)
            reported = reported_group(groups)
            block_size = groups[reported].block_size if reported is not None else None
            self._calls = SchedulerCalls(config, instances, model_name, block_size, shared_event_loop())
            self._scheduler = SchedulerSide(
                settings, self._calls.lookups, self._calls.reports, Adapters(lora_settings(vllm_config))
            )
        else:
            place = place_of(engine_id, parallel.rank, parallel.world_size, num_replicas)
            self._worker = WorkerSide(config, model_name, place, parallel.rank, shared_event_loop(), _recorded_event)

    @property
    def requires_kv_delivery(self) -> bool:
        """It is a cache: what is not stored is computed again."""
        return False

    # The scheduler's side.

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._scheduler is not None:
            from vllm.v1.core.sched.scheduler import Scheduler

            follow(Scheduler, kv_cache_manager, self._scheduler)

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        if self._scheduler is not None:
            self._scheduler.bind(gpu_block_pool)

    def set_xfer_handshake_metadata_pp_aware(self, metadata: Mapping[tuple[int, int], Any]) -> None:
        """Within a MultiConnector this is another connector's; our workers report with the steps."""

    def on_new_request(self, request: Request) -> None:
        assert self._scheduler is not None
        self._scheduler.arrived(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        assert self._scheduler is not None
        state = scheduler_output.kv_connector_block_state
        cached = scheduler_output.scheduled_cached_reqs
        new_blocks = [(new.req_id, new.block_ids, True) for new in scheduler_output.scheduled_new_reqs]
        new_blocks += [
            (request_id, block_ids, request_id in cached.resumed_req_ids)
            for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True)
            if block_ids is not None
        ]
        orders = self._scheduler.step(
            scheduler_output.num_scheduled_tokens,
            state.get_block_ids if state is not None else lambda _: None,
            new_blocks,
            may_store=not scheduler_output.has_sync_kv_loads,
        )
        return StepMetadata(orders)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        assert self._scheduler is not None
        reported = connector_output.kv_connector_worker_meta
        if isinstance(reported, ReportMetadata):
            self._scheduler.reported(reported.report)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """False: vLLM frees the blocks; those that are being stored are kept by references of their own."""
        assert self._scheduler is not None
        self._scheduler.finished(request)
        return False, None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.needs_steps()

    def reset_cache(self) -> bool | None:
        """vLLM calls it for resets that it carries out; `resets` tells of all."""
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    # The worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._worker is not None
        self._worker.register(kv_caches, self._kv_cache_config)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        assert self._worker is not None
        self._worker.load(self._orders().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Requests are not scheduled before their load has ended."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are stored when they are whole: `wait_for_save` begins that."""

    def wait_for_save(self) -> None:
        assert self._worker is not None
        self._worker.store(self._orders().stores)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Loads fail by request: of which blocks, vLLM takes from caches of a single group only."""
        assert self._worker is not None
        loaded, failed = self._worker.take_loaded()
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = self._worker.take_report() if self._worker is not None else None
        return ReportMetadata(report) if report is not None else None

    # Both sides.

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._calls.close()

    def _orders(self) -> StepCommands:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        return metadata.orders


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Orders, as vLLM carries them to its workers."""

    orders: StepCommands


@dataclass
class ReportMetadata(KVConnectorWorkerMetadata):
    """A report, as vLLM carries it to its scheduler."""

    report: WorkerReport

    def aggregate(self, other: KVConnectorWorkerMetadata) -> ReportMetadata:
        assert isinstance(other, ReportMetadata)
        return ReportMetadata(self.report.aggregate(other.report))


def _recorded_event() -> Any:
    """An event of this moment on the device's current stream, that another process can wait for."""
    import torch

    event = torch.cuda.Event(interprocess=True)
    event.record()
    return event


def _log_as_vllm_does() -> None:
    """Our loggers take vLLM's handlers, unless the user gave them their own."""
    ours, theirs = logging.getLogger("kvdepot"), logging.getLogger("vllm")
    if not ours.handlers and ours.level == logging.NOTSET:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.getEffectiveLevel())
        ours.propagate = False
