"""The engine-neutral connector: asynchronous lookups, loads and stores for the scheduler and the workers of an engine.

`open_scheduler` makes the side that decides, in the process of the engine's scheduler. `open_worker` makes the side
that moves blocks, in the process of each worker. `StepCommands` go from the first to the second with each step of the
engine, and a `WorkerReport` comes back. docs/connector.md has the calls in their order, and examples/engine an engine.

The names of `__all__` are public. An engine's own package, such as `kvdepot.vllm`, turns the engine's objects into the
values of these modules.
"""

from kvdepot.connector.attached_memory import AttachedMemory, TableSource
from kvdepot.connector.block_hashes import BLOCK_HASH_SEED, BlockHashes
from kvdepot.connector.block_transfers import BlockReferences
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, StepCommands, WorkerReport
from kvdepot.connector.config import ConfigError, ConnectorConfig
from kvdepot.connector.ended_loads import EndedLoad
from kvdepot.connector.engine_facts import EngineFacts
from kvdepot.connector.identity import CacheIdentity, traceparent_of
from kvdepot.connector.request_state import Adapter, EngineRequest, RequestTraits
from kvdepot.connector.sides import ConnectedScheduler, open_scheduler, open_worker
from kvdepot.connector.worker import ConnectorWorker

__all__ = [
    "BLOCK_HASH_SEED",
    "Adapter",
    "AttachedMemory",
    "BlockHashes",
    "BlockIds",
    "BlockReferences",
    "CacheGroup",
    "CacheIdentity",
    "ConfigError",
    "ConnectedScheduler",
    "ConnectorConfig",
    "ConnectorWorker",
    "EndedLoad",
    "EngineFacts",
    "EngineRequest",
    "RequestTraits",
    "StepCommands",
    "TableSource",
    "WorkerReport",
    "open_scheduler",
    "open_worker",
    "traceparent_of",
]
