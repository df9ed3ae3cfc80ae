"""The attributes of the metrics."""

from __future__ import annotations

from telemetry.events import EVENT_TYPES
from telemetry.kinds import (
    DetachReason,
    Hop,
    LeaseEnd,
    MissReason,
    OperationKind,
    Outcome,
    PinEnd,
    PrefetchOutcome,
    RefusalReason,
    SessionEnd,
    Tier,
)
from telemetry.metrics.label_limiter import MAX_MODELS
from telemetry.metrics.metric import Attribute

NO_ANSWER = "no answer"
"""The reason of missed tokens whose lookup failed."""

MODEL = Attribute(
    "model_name",
    f"as the engine gave it. The depot exports the first {MAX_MODELS} names; all others are `other`, and so is the "
    "model of an instance whose events were dropped",
)
INSTANCE = Attribute(
    "instance_id",
    "as the engine gave it, with tenants `tenant/instance_id`. Few are remembered; others are forgotten or `other`",
)
ONE_INSTANCE = Attribute(
    "instance_id",
    "as the engine gave it, with tenants `tenant/instance_id`. 255 at a time have values of their own. An instance "
    "beyond that takes the place of one that has gone, or is `other`",
)
RATE_SOURCE = Attribute(
    "source",
    "reported: by the engine when it attached; measured: by the depot in the instance's sessions",
    ("reported", "measured"),
)
VERSION = Attribute("version", "of the depot")
PYTHON_VERSION = Attribute("python_version", "of Python")
GRPC_VERSION = Attribute("grpc_version", "of grpcio")
BACKENDS = Attribute("transfer_backend", "what can move bytes on this machine, such as `host, cuda`")
OPERATION = Attribute("operation", "the kind of call; inline calls count like the others", tuple(OperationKind))
MOVE = Attribute("operation", "why the bytes moved", ("store", "retrieve"))
OUTCOME = Attribute("outcome", "how it ended", tuple(Outcome))
TIER = Attribute("tier", "where chunks are", tuple(Tier))
MISS_REASON = Attribute(
    "reason",
    "why; where every whole chunk matched, the rest is shorter than a chunk",
    (*MissReason, NO_ANSWER),
)
RESULT = Attribute("result", "what became of them; tail: less than a chunk", ("stored", "resident", "refused", "tail"))
REFUSAL_REASON = Attribute("reason", "why the first refused chunk was refused", tuple(RefusalReason))
DIRECTION = Attribute("direction", "store: out of the engine's blocks; retrieve: into them", ("store", "retrieve"))
BACKEND = Attribute("backend", "what moved the bytes: one of the few that this machine has, such as `host`")
STEP = Attribute("step", "what was done; steps overlap where they can", ("wait", "gather", "scatter", "copy"))
PIN_KIND = Attribute("kind", "new, or pinned again while it lived", ("new", "again"))
PIN_END = Attribute("reason", "why; lost: its last chunk was corrupt, or did not come from its tier", tuple(PinEnd))
PREFETCH_OUTCOME = Attribute(
    "outcome",
    "used: a lookup matched it within a minute; unused: none did; failed: it did not come from its tier",
    tuple(PrefetchOutcome),
)
HOP = Attribute("hop", "where the bytes were compared; inline: at an inline retrieve", tuple(Hop))
LEASE_END = Attribute("reason", "why it ended", tuple(LeaseEnd))
SESSION_END = Attribute("reason", "why it ended", tuple(SessionEnd))
DETACH_REASON = Attribute(
    "reason",
    "why it ended; lost: the engine left work and sent no DetachInstance, as when it dies; failed: its device failed; "
    "drained: the depot shut down",
    tuple(DetachReason),
)
SLOT_STATE = Attribute("state", "of the slots that memory is cut into so far", ("used", "free"))
ADOPTION_DOUBT = Attribute(
    "reason",
    "the doubt; each is explained in docs/memory.md",
    ("damaged", "namespace damaged", "outside", "overlapping", "older", "without checksum"),
)
BLOCK_STATE = Attribute(
    "state",
    "owned: by a live session; released: with contents that the next session could reuse; unknown: neither",
    ("owned", "released", "unknown"),
)
TENANT = Attribute("tenant", "a name in the file of tenants")
CALLER = Attribute("tenant", "a name in the file of tenants; empty if the caller is not known")
DENIED_REASON = Attribute(
    "reason",
    "that of the error",
    (
        *("CREDENTIALS_MISSING", "TOKEN_UNKNOWN", "TOKEN_EXPIRED", "CERTIFICATE_UNKNOWN", "CREDENTIALS_CONFLICT"),
        *("CREDENTIALS_REVOKED", "INSECURE_TRANSPORT", "ADMIN_ONLY", "OTHER_TENANT", "REGION_FORBIDDEN"),
    ),
)
LIMIT_REASON = Attribute("reason", "that of the error", ("TOO_MANY_RPCS", "TOO_MANY_BYTES", "TOO_MANY_OBJECTS"))
FILE = Attribute("file", "its content", ("tenants", "certificate"))
READ_RESULT = Attribute("result", "what became of the new content", ("used", "refused"))
RPC_SYSTEM = Attribute("rpc.system.name", "the system", ("grpc",))
RPC_METHOD = Attribute(
    "rpc.method", "a method of the depot, such as `kvdepot.v1.CacheService/Lookup`; others are not measured"
)
REFUSED_METHOD = Attribute(
    "rpc.method", "a method of the depot, such as `kvdepot.v1.CacheService/Store`; all others are `other`"
)
REFUSED_REASON = Attribute("reason", "that of the error, such as `RANK_ATTACHED`; the comments of protos/ explain each")
RPC_STATUS = Attribute("rpc.response.status_code", "the gRPC status that the call ended with, such as `OK`")
RPC_KIND = Attribute(
    "kind", "stream: AttachInstance and WatchEvents, which stay open; call: all others", ("call", "stream")
)
EVENT_TYPE = Attribute("event_type", "a type of docs/events.md", tuple(EVENT_TYPES))
SUBSCRIBER = Attribute("subscriber", "its name: one for each subscriber of the depot and of the settings")
STREAM = Attribute("stream", "the stream that the line was for; the log is in stderr", ("stdout", "stderr"))
CPU_MODE = Attribute("cpu.mode", "what ran", ("user", "system"))
GENERATION = Attribute("cpython.gc.generation", "of objects", ("0", "1", "2"))
