"""The facts of an engine that the connector needs."""

from __future__ import annotations

from dataclasses import dataclass

from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.config import ConfigError, ConnectorConfig
from kvdepot.connector.identity import CacheIdentity
from kvdepot.connector.scheduler_settings import SchedulerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The facts of an engine that never change. All of its processes have equal ones; they can be pickled.

    `engine_id` is unique for each replica: a pod's name, a uuid, never a bare pid. `num_blocks` are in the scheduler's
    block pool. Each block hash of a request covers `hash_block_size` tokens more than the one before. That divides the
    block size of each group. `num_workers` counts over tensor and pipeline parallelism; so many consecutive ones as
    `tensor_parallel_size` says hold the heads of the same layers (0: it is not known), and so many as `num_replicas`
    says hold equal KV. The engine schedules at most `steps_ahead` steps while one runs. An engine that
    never `loads` only fills the depot; one that never `stores` only reads it. An engine that `publishes_blocks` tells
    routers itself which blocks it has stored.

    Raises: ConfigError.
    """

    engine_id: str
    identity: CacheIdentity
    groups: tuple[CacheGroup, ...]
    num_blocks: int
    hash_block_size: int
    num_workers: int = 1
    tensor_parallel_size: int = 0
    num_replicas: int = 1
    steps_ahead: int = 0
    loads: bool = True
    stores: bool = True
    publishes_blocks: bool = False

    def __post_init__(self) -> None:
        faults = [f"{name} is empty" for name in ("engine_id", "groups") if not getattr(self, name)]
        faults += [] if self.identity.model_name else ["identity.model_name is empty"]
        for name in ("num_blocks", "hash_block_size", "num_workers", "num_replicas"):
            if (value := getattr(self, name)) < 1:
                faults.append(f"{name} is {value}, and must be at least 1")
        if self.steps_ahead < 0:
            faults.append(f"steps_ahead is {self.steps_ahead}, and must be at least 0")
        faults += [
            f"a group has blocks of {group.block_size} tokens, which is no multiple of {self.hash_block_size}"
            for group in self.groups
            if group.block_size < 1 or (self.hash_block_size > 0 and group.block_size % self.hash_block_size)
        ]
        if self.num_replicas > 0 and self.num_workers % self.num_replicas:
            faults.append(f"{self.num_workers} workers can't hold the KV {self.num_replicas} times")
        if self.num_replicas > 1 and any(group.holds_state for group in self.groups):
            faults.append("num_replicas is above 1, and each worker has states of its own")
        if (size := self.tensor_parallel_size) < 0 or (size and self.num_workers % size):
            faults.append(f"tensor_parallel_size is {size}, and must divide the {self.num_workers} workers")
        if faults:
            raise ConfigError("; ".join(faults))

    def shards_per_worker(self, config: ConnectorConfig) -> int:
        """Return how many shards of heads each worker has. Each is a rank of the depot.

        Raises: ConfigError: `head_shards` does not fit the tensor-parallel size or the groups.
        """
        if not config.head_shards:
            return 1
        size = self.tensor_parallel_size or (1 if self.num_workers == 1 else 0)
        if not size:
            raise ConfigError("kvdepot.head_shards needs an engine that says its tensor_parallel_size")
        if self.num_replicas > 1:
            raise ConfigError(
                f"kvdepot.head_shards is set, but {self.num_replicas} workers hold equal KV, not parts of the heads"
            )
        if any(group.holds_state for group in self.groups):
            raise ConfigError("kvdepot.head_shards is set, but a group holds states, which can't be split by heads")
        if config.head_shards % size:
            asked = f"kvdepot.head_shards is {config.head_shards}"
            raise ConfigError(f"{asked}, and must be a multiple of {size}, the tensor-parallel size")
        return config.head_shards // size

    def scheduler_settings(self, config: ConnectorConfig) -> SchedulerSettings:
        """Return the settings of the connector's scheduler."""
        return SchedulerSettings(
            hash_block_size=self.hash_block_size,
            groups=self.groups,
            num_blocks=self.num_blocks,
            num_workers=self.num_workers,
            loads=self.loads,
            stores=self.stores,
            lookup_timeout_seconds=config.lookup_timeout_seconds,
            lease_hold_seconds=config.lease_hold_seconds,
            longest_transfer_seconds=max(config.retrieve_timeout_seconds, config.store_timeout_seconds),
            prefill_tokens_per_second=config.prefill_tokens_per_second,
            steps_ahead=self.steps_ahead,
            store_prompts_only=config.store_prompts_only,
            training_run=config.training_run,
            reset_means_new_weights=config.reset_means_new_weights,
            # An engine that loads nothing has no use for requests whose blocks are in the depot.
            publishes_blocks=self.publishes_blocks and config.publish_blocks and self.loads,
        )
