"""What happens to the server, to its files, to instances and to sessions; and which calls it refuses."""

from __future__ import annotations

from telemetry.events.event import Event, fact


@fact
class ServerStarted(Event):
    """The server listens and takes calls.

    `build`: the versions of what it runs on. `http_address`: of its pages; empty if it serves none. `l1_file`: the file
    that L1 is in; empty if it has no name. `num_adopted_chunks`: those that an earlier process left in L1.
    `num_rejected_chunks`: those of them that the server did not trust.
    """

    version: str
    build: str
    listen: tuple[str, ...]
    http_address: str
    l1_bytes: int
    chunk_size: int
    transfer_backend: str
    has_tenants: bool
    has_tls: bool
    l1_file: str = ""
    num_adopted_chunks: int = 0
    num_rejected_chunks: int = 0


@fact
class ServerDraining(Event):
    """From this moment the server refuses new work and finishes the work that it has."""


@fact
class ServerStopped(Event):
    """The drain is over, and the process ends. `duration_seconds`: of the drain.

    The numbers are of what was left when the drain had waited for as long as it may: these calls and transfers are cut,
    and these attachments, sessions and leases end.
    """

    duration_seconds: float
    uptime_seconds: float
    num_calls: int
    num_transfers: int
    num_attachments: int
    num_sessions: int
    num_leases: int


@fact
class LogLevelChanged(Event):
    """The level of a logger changed; an empty `logger` is the whole log.

    `reason`: requested, by SetLogLevel; expired, because the time of an earlier request ran out. Then, and without a
    time in the request, `expire_time` is None.
    """

    logger: str
    level: str
    expire_time: float | None
    reason: str


@fact
class CallServed(Event):
    """A call without a caller's trace ended. It is published only where spans are recorded: it becomes one.

    The session is the one that the request names, if it names one. `status` is the number of a gRPC status.
    """

    rpc: str
    duration_seconds: float
    status: int


@fact
class FileReloaded(Event):
    """A file changed, and its new content is in use. `file`: tenants, or certificate."""

    file: str


@fact
class FileRefused(Event):
    """A file changed, and its new content can't be used: the content before it stays in use."""

    file: str
    reason: str


@fact
class RecordingEnded(Event):
    """No more requests are recorded. `reason`: why the file can't be written any more; empty at the drain.

    `num_requests`: those in the file and its earlier parts. `num_dropped`: the lookups and stores that are missing.
    """

    file: str
    reason: str
    num_requests: int
    num_dropped: int


@fact
class CallDenied(Event):
    """The caller may not make this call. `reason` is the error's. `tenant` is empty if the caller is not known.

    `peer` is the address of the caller, without the port.
    """

    rpc: str
    peer: str
    reason: str


@fact
class CallRefused(Event):
    """An attach or a store was refused. The caller received the same `reason` and `detail`.

    `peer` is the address of the caller, without the port. The instance is the one that the request names. It is empty
    if the call was refused before its request was received.
    """

    rpc: str
    peer: str
    status: str
    reason: str
    detail: str


@fact
class InstanceAttached(Event):
    """One rank of an instance is registered, and its memory is mapped."""

    model_name: str
    world_size: int
    rank: int
    chunk_size: int
    """Tokens per chunk."""
    chunk_bytes: int
    mapped_bytes: int
    transfer_backend: str
    prefill_tokens_per_second: float | None
    """What the engine reports of itself. None: nothing."""
    model_revision: str = ""
    """The revision of the engine's weights. Empty: it named none."""
    block_hash_seed: str = ""
    """The algorithm and the seed of the engine's block hashes. Empty: it named none."""


@fact
class InstanceDetached(Event):
    """The attachment of one rank ended, and its memory is unmapped. With `num_ranks_left` 0 the instance is gone.

    `reason`: closed; lost, if the engine sent no DetachInstance and left sessions, leases or transfers; failed, if
    its device failed; drained, if the depot shuts down.
    """

    model_name: str
    rank: int
    reason: str
    num_ranks_left: int


@fact
class SessionStarted(Event):
    """A call or a report of blocks named a session for the first time."""

    model_name: str
    traceparent: str
    """The W3C Trace Context of the call that named the session. Empty without one, and where nothing is traced."""


@fact
class SessionEnded(Event):
    """A session ended. `reason`: requested, by EndSession; idle, for too long; instance detached."""

    model_name: str
    reason: str
    duration_seconds: float
    num_operations: int
