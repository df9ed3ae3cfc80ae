"""Who a worker and a request are to the depot."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

MAX_SESSION_BYTES = 256
MAX_SALT_BYTES = 256
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One worker among those of an engine.

    Consecutive ranks of tensor parallelism may hold equal KV (MLA does): they are replicas. Each set of workers that
    holds all of it once is an instance of its own to the depot, and only that of replica 0 stores.
    """

    instance_id: str
    rank: int
    world_size: int
    replica: int

    @property
    def stores(self) -> bool:
        """Whether this worker stores what it computes."""
        return self.replica == 0


def instance_ids(engine_id: str, num_replicas: int) -> tuple[str, ...]:
    """The instances that an engine is, by replica."""
    if num_replicas == 1:
        return (engine_id,)
    return tuple(f"{engine_id}-replica{replica}" for replica in range(num_replicas))


def place_of(engine_id: str, worker: int, num_workers: int, num_replicas: int) -> Place:
    """The place of a worker, counted over tensor and pipeline parallelism."""
    rank, replica = divmod(worker, num_replicas)
    return Place(
        instance_id=instance_ids(engine_id, num_replicas)[replica],
        rank=rank,
        world_size=num_workers // num_replicas,
        replica=replica,
    )


def session_of(request: Any, attempt: int = 1) -> str:
    """The session that a request is to the depot: the first of its id, or a later one."""
    return within(f"{request.request_id}#{attempt}" if attempt > 1 else str(request.request_id), MAX_SESSION_BYTES)


def salt_of(request: Any, generation: str) -> str:
    """The request's salt; of one's own generation once the engine's cache was reset."""
    salt = request.cache_salt or ""
    return within(f"{salt}#{generation}" if generation else salt, MAX_SALT_BYTES)


def traceparent_of(request: Any) -> str:
    """The caller's place in its trace (W3C Trace Context), if vLLM was told of it; a client may have sent anything."""
    headers = request.trace_headers or {}
    found = next((str(value) for key, value in headers.items() if key.lower() == "traceparent"), "")
    return found if _TRACEPARENT.fullmatch(found) else ""


def within(text: str, max_bytes: int) -> str:
    """The text, or a digest of it if it is too long, or no text at all: half of a surrogate pair is none."""
    encoded = text.encode("utf-8", "surrogatepass")
    is_text = text.isascii() or encoded.decode("utf-8", "replace") == text
    return text if is_text and len(encoded) <= max_bytes else hashlib.blake2b(encoded, digest_size=32).hexdigest()
