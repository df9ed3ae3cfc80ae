"""The two sides of an engine's connector, each made of the engine's facts and the user's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvdepot.connector.block_transfers import BlockReferences
from kvdepot.connector.cache_groups import reported_group
from kvdepot.connector.config import ConfigError, ConnectorConfig
from kvdepot.connector.engine_facts import EngineFacts
from kvdepot.connector.event_loop import shared_event_loop
from kvdepot.connector.identity import instance_ids, worker_id
from kvdepot.connector.request_state import EngineRequest, RequestTraits
from kvdepot.connector.scheduler import ConnectorScheduler
from kvdepot.connector.scheduler_client import SchedulerClient
from kvdepot.connector.worker import ConnectorWorker


class ConnectedScheduler(ConnectorScheduler):
    """The scheduler's side, with a connection of its own. `open_scheduler` makes it."""

    def __init__(
        self, config: ConnectorConfig, facts: EngineFacts, traits_of: Callable[[EngineRequest], RequestTraits]
    ) -> None:
        facts.shards_per_worker(config)  # refuses what the workers would refuse
        reported = reported_group(facts.groups)
        settings = facts.scheduler_settings(config)
        self._client = SchedulerClient(
            config,
            instance_ids(facts.engine_id, facts.num_replicas),
            facts.identity.in_head_shards(config.head_shards).model_name,
            facts.groups[reported].block_size if reported is not None else None,
            shared_event_loop(),
            # The depot learns only from a chunk itself whether it has a state.
            config.lookup_timeout_seconds / 2 if settings.has_states else 0.0,
        )
        super().__init__(settings, self._client.lookups, self._client.reports, traits_of)

    @property
    def is_attached(self) -> bool:
        """Whether all workers are attached to a depot, as they reported last. If not, requests are computed."""
        return bool(self._workers.chunk_size)

    def close(self) -> None:
        """Close the connection, within 2 s. The engine makes no other call after it."""
        self._client.close()


def open_scheduler(
    config: ConnectorConfig,
    facts: EngineFacts,
    references: BlockReferences,
    traits_of: Callable[[EngineRequest], RequestTraits] = lambda request: RequestTraits(),
) -> ConnectedScheduler:
    """Return the scheduler's side, for the process of the engine's scheduler. It waits for no depot.

    `references` is the engine's block pool. `traits_of` is called once for each request, when it is new.
    """
    scheduler = ConnectedScheduler(config, facts, traits_of)
    scheduler.bind(references)
    return scheduler


def open_worker(
    config: ConnectorConfig,
    facts: EngineFacts,
    worker_index: int = 0,
    record_event: Callable[[], Any] | None = None,
) -> ConnectorWorker:
    """Return one worker's side, for the process of that worker. Its `attach` gives it memory.

    `worker_index` is from 0 to `facts.num_workers - 1`. `record_event` is described at `ConnectorWorker`.

    Raises: ConfigError: there is no such worker, or the settings do not fit the engine.
    """
    if not 0 <= worker_index < facts.num_workers:
        raise ConfigError(f"worker_index is {worker_index}, and the engine has {facts.num_workers} workers")
    return ConnectorWorker(
        config,
        facts.identity.in_head_shards(config.head_shards),
        worker_id(facts.engine_id, worker_index, facts.num_workers, facts.num_replicas),
        worker_index,
        shared_event_loop(),
        record_event,
        num_shards=facts.shards_per_worker(config),
    )
