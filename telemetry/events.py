"""What can happen in the depot: one class per fact, with a docstring that says when it is published.

Facts are in the past tense; work that takes time is a ``…Started`` and a ``…Finished`` event with one
``operation_id``, unique to that piece of work. An outcome is one of ``OUTCOMES``. Numbers are of tokens, chunks and
bytes as their names say; durations are in seconds of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic as monotonic_clock
from time import time as wall_clock
from typing import TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

OUTCOMES = ("ok", "partial", "miss", "refused", "cancelled", "failed")

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
def fact(cls: type[T]) -> type[T]:
    """A slotted dataclass with keyword-only fields, compared by identity, frozen for the type checker.

    Not frozen at run time as well: ``frozen=True`` sets each field through ``object.__setattr__``, which makes the
    largest event 2.7 times as dear, and events are made on the path they watch.
    """
    return dataclass(slots=True, kw_only=True, eq=False)(cls)


@fact
class Event:
    """What every event has. The type's name is the class's; the ids are empty where there is none."""

    time: float = field(default_factory=wall_clock)
    """Seconds since the epoch, for people."""
    monotonic: float = field(default_factory=monotonic_clock)
    """Seconds of a clock that never jumps, for differences."""
    instance_id: str = ""
    """As the engine gave it; where the depot has tenants ``tenant/instance_id``, so that no two share one."""
    session_id: str = ""
    tenant: str = ""
    """Whose it is; empty where the depot has no tenants, and of what is nobody's."""


def own_instance_id(event: Event) -> str:
    """The event's instance as its own tenant calls it."""
    return event.instance_id.removeprefix(f"{event.tenant}/") if event.tenant else event.instance_id


# The server, instances and sessions


@fact
class ServerStarted(Event):
    """The server listens and takes calls."""

    version: str
    listen: tuple[str, ...]


@fact
class ServerDraining(Event):
    """The server refuses new work from here on, and finishes what it has."""


@fact
class FileReloaded(Event):
    """A ``file`` had changed, and what is in it now is in use: tenants, or certificate."""

    file: str


@fact
class FileRefused(Event):
    """A ``file`` has changed, and what is in it now can't be used; what was in it before goes on."""

    file: str
    reason: str


@fact
class CallDenied(Event):
    """A call was refused to its caller: ``reason`` as the error tells it; ``tenant`` is empty where nobody knows it.

    ``peer`` is where it came from, without the port.
    """

    rpc: str
    peer: str
    reason: str


@fact
class CallRefused(Event):
    """An attach or a store was refused. The caller received the same ``reason`` and ``detail``.

    ``peer`` is where it came from, without the port. The instance is the one that the request names; it is empty if the
    call was refused before its request was received.
    """

    rpc: str
    peer: str
    status: str
    reason: str
    detail: str


@fact
class InstanceAttached(Event):
    """One rank of an instance is registered, its memory mapped."""

    model_name: str
    world_size: int
    rank: int
    chunk_bytes: int
    mapped_bytes: int
    transfer_backend: str


@fact
class InstanceDetached(Event):
    """The attachment of one rank ended and its memory is unmapped. With ``num_ranks_left`` 0 the instance is gone.

    ``reason``: closed; lost, if no DetachInstance came and sessions, leases or transfers of its instance were still
    alive; failed, if its device was; drained, if the depot shuts down.
    """

    model_name: str
    rank: int
    reason: str
    num_ranks_left: int


@fact
class SessionStarted(Event):
    """A session was named for the first time, by a call or by a report of blocks."""

    model_name: str
    traceparent: str
    """Of the call that named it, as W3C Trace Context has it; empty if there is none or nothing is traced."""


@fact
class SessionEnded(Event):
    """A session ended, by EndSession, with its instance, or after idling for too long: ``reason``."""

    model_name: str
    reason: str
    duration_seconds: float
    num_operations: int


# Work


@fact
class LookupStarted(Event):
    """A valid Lookup came in; ``computed_tokens`` are those that the engine has itself."""

    operation_id: str
    traceparent: str
    num_tokens: int
    computed_tokens: int


@fact
class LookupFinished(Event):
    """A Lookup is answered; ``miss_reason`` says why no more tokens matched, empty if all did."""

    operation_id: str
    duration_seconds: float
    outcome: str
    num_tokens: int
    matched_tokens: int
    l1_tokens: int
    l2_tokens: int
    miss_reason: str


@fact
class StoreStarted(Event):
    """A valid Store came in, for the tokens from ``start_token`` on."""

    operation_id: str
    traceparent: str
    rank: int
    num_tokens: int
    start_token: int
    inline: bool


@fact
class StoreFinished(Event):
    """A Store is answered; its four token counts add up to the tokens sent from ``start_token`` on."""

    operation_id: str
    rank: int
    duration_seconds: float
    outcome: str
    stored_tokens: int
    resident_tokens: int
    refused_tokens: int
    tail_tokens: int
    stored_bytes: int
    refusal_reason: str


@fact
class RetrieveStarted(Event):
    """A valid Retrieve came in; tokens below ``skip_tokens`` are not written.

    ``stored_by`` names the stores that the chunks came from, by their ``operation_id``: the last few of them.
    """

    operation_id: str
    traceparent: str
    rank: int
    lease_id: str
    num_tokens: int
    skip_tokens: int
    stored_by: tuple[str, ...]
    inline: bool


@fact
class RetrieveFinished(Event):
    """A Retrieve is answered; ``l1_tokens`` and ``l2_tokens`` say where the retrieved tokens came from."""

    operation_id: str
    rank: int
    duration_seconds: float
    outcome: str
    retrieved_tokens: int
    retrieved_bytes: int
    l1_tokens: int
    l2_tokens: int


@fact
class TransferStep:
    """One kind of work within a transfer, from its first start to its last end; kinds overlap where they can.

    ``name``: wait (for the engine's event and for a turn), gather, scatter, copy. Times are from the transfer's start.
    """

    name: str
    start_seconds: float
    duration_seconds: float


@fact
class TransferStarted(Event):
    """Bytes of a store or a retrieve (``direction``) begin to move; ``operation_id`` is the transfer's own."""

    operation_id: str
    parent_operation_id: str
    direction: str
    rank: int
    num_chunks: int
    num_bytes: int
    backend: str


@fact
class TransferFinished(Event):
    """No byte of the transfer moves any more."""

    operation_id: str
    parent_operation_id: str
    direction: str
    rank: int
    duration_seconds: float
    outcome: str
    num_chunks: int
    num_bytes: int
    backend: str
    steps: tuple[TransferStep, ...]


# Leases and chunks


@fact
class LeaseGranted(Event):
    """A Lookup leased chunks until ``expire_time``, in seconds since the epoch."""

    lease_id: str
    num_chunks: int
    expire_time: float


@fact
class LeaseEnded(Event):
    """A lease protects nothing any more. ``reason``: released, expired, revoked, session ended, instance detached."""

    lease_id: str
    reason: str
    num_chunks: int


@fact
class ChunksStored(Event):
    """Chunks are in L1 and visible to Lookup.

    ``seconds_since_eviction``: of those that had been in L1 before, as far as is remembered.
    """

    model_name: str
    rank: int
    keys: tuple[bytes, ...]
    num_bytes: int
    seconds_since_eviction: npt.NDArray[np.float64]


@fact
class ChunksReused(Event):
    """A Lookup leased chunks that nobody had a lease of: how long each was unused, in ``reuse_gap_seconds``."""

    model_name: str
    tier: str
    reuse_gap_seconds: npt.NDArray[np.float64]


@fact
class ChunksEvicted(Event):
    """Chunks left a tier because their room was needed: how long each was there, and how long unused at the end."""

    model_name: str
    tier: str
    keys: tuple[bytes, ...]
    num_bytes: int
    lifetime_seconds: npt.NDArray[np.float64]
    idle_seconds: npt.NDArray[np.float64]


@fact
class CacheCleared(Event):
    """ClearCache dropped chunks; a ``cache_salt`` of None means those of every salt."""

    model_name: str
    cache_salt: str | None
    num_chunks: int
    num_bytes: int
    force: bool


# L0: reports of an engine's scheduler


@fact
class BlockAllocation:
    """Blocks given to one session: its table grew by ``reused_block_ids``, then by ``block_ids``."""

    session_id: str
    block_ids: npt.NDArray[np.uint32]
    token_ids: npt.NDArray[np.uint32]
    reused_block_ids: npt.NDArray[np.uint32]
    resumed: bool


@fact
class BlocksAllocated(Event):
    """An engine reported which blocks it gave to which sessions, in the order in which it did."""

    model_name: str
    block_size: int
    records: tuple[BlockAllocation, ...]


EVENT_TYPES: dict[str, type[Event]] = {
    event_type.__name__: event_type
    for event_type in (
        ServerStarted,
        ServerDraining,
        FileReloaded,
        FileRefused,
        CallDenied,
        CallRefused,
        InstanceAttached,
        InstanceDetached,
        SessionStarted,
        SessionEnded,
        LookupStarted,
        LookupFinished,
        StoreStarted,
        StoreFinished,
        RetrieveStarted,
        RetrieveFinished,
        TransferStarted,
        TransferFinished,
        LeaseGranted,
        LeaseEnded,
        ChunksStored,
        ChunksReused,
        ChunksEvicted,
        CacheCleared,
        BlocksAllocated,
    )
}
