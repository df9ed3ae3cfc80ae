"""The names of engines, workers, sessions and salts in the depot."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MAX_SESSION_BYTES = 256
MAX_SALT_BYTES = 256
MAX_MODEL_BYTES = 512
MAX_REVISION_BYTES = 256
MAX_HASH_SEED_BYTES = 256
_GENERATION = '{"generation": '
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheIdentity:
    """What an engine attaches as: engines share KV only if all of this is equal. It is the same in all workers.

    `block_hash_seed` is empty if the hashes of the engine's blocks are its process's own.
    """

    model_name: str
    model_revision: str = ""
    block_hash_seed: str = ""

    def in_head_shards(self, head_shards: int) -> CacheIdentity:
        """Return the identity of KV that is stored in so many shards of its heads. 0: it is stored by worker.

        It is another one even if each worker has one shard: only engines with this setting read each other's KV.
        """
        if not head_shards:
            return self
        suffix = f" in {head_shards} head shards"
        return replace(self, model_name=bounded_text(self.model_name, MAX_MODEL_BYTES - len(suffix)) + suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerId:
    """One worker of an engine, or one shard of its heads.

    Consecutive ranks of tensor parallelism may hold equal KV, as with multi-head latent attention: they are replicas.
    Each set of workers that holds all of the KV once is one instance of the depot. Only replica 0 stores. A worker with
    several shards of heads is as many ranks of the depot.
    """

    instance_id: str
    rank: int
    world_size: int
    replica: int

    @property
    def stores(self) -> bool:
        """Whether this worker stores what it computes."""
        return self.replica == 0

    def shards(self, num_shards: int) -> tuple[WorkerId, ...]:
        """Return the ids of this worker's shards. All workers have so many."""
        first, world_size = self.rank * num_shards, self.world_size * num_shards
        return tuple(replace(self, rank=first + shard, world_size=world_size) for shard in range(num_shards))


def instance_ids(engine_id: str, num_replicas: int) -> tuple[str, ...]:
    """Return the instance ids of an engine, by replica."""
    if num_replicas == 1:
        return (engine_id,)
    return tuple(f"{engine_id}-replica{replica}" for replica in range(num_replicas))


def worker_id(engine_id: str, worker_index: int, num_workers: int, num_replicas: int) -> WorkerId:
    """Return the id of a worker; `worker_index` counts over tensor and pipeline parallelism."""
    rank, replica = divmod(worker_index, num_replicas)
    return WorkerId(
        instance_id=instance_ids(engine_id, num_replicas)[replica],
        rank=rank,
        world_size=num_workers // num_replicas,
        replica=replica,
    )


def session_id_of(request_id: str, attempt: int = 1) -> str:
    """Return the session id of a request. `attempt` counts the open requests with the same id."""
    return bounded_text(f"{request_id}#{attempt}" if attempt > 1 else request_id, MAX_SESSION_BYTES)


def salt_of(cache_salt: str, generation: Sequence[str] = ()) -> str:
    """Return the salt of a request's keys; `generation` names the weights, and is empty before their first change.

    No salt of a request gives the keys of another generation.
    """
    if generation or cache_salt.startswith(_GENERATION):
        cache_salt = json.dumps({"generation": list(generation), "salt": cache_salt})
    return bounded_text(cache_salt, MAX_SALT_BYTES)


def traceparent_of(headers: Mapping[str, str] | None) -> str:
    """Return the caller's W3C trace context; empty if there is none, or if the client sent something else."""
    found = next((str(value) for key, value in (headers or {}).items() if key.lower() == "traceparent"), "")
    return found if _TRACEPARENT.fullmatch(found) else ""


def bounded_text(text: str, max_bytes: int) -> str:
    """Return the text, or a digest of it if it is too long or no valid Unicode (half of a surrogate pair)."""
    encoded = text.encode("utf-8", "surrogatepass")
    is_text = text.isascii() or encoded.decode("utf-8", "replace") == text
    return text if is_text and len(encoded) <= max_bytes else hashlib.blake2b(encoded, digest_size=32).hexdigest()
