"""Every metric that the depot exports, but for those of the engines' blocks (`telemetry.l0.subscriber`)."""

from __future__ import annotations

from telemetry.events import EVENT_TYPES
from telemetry.kinds import DetachReason, LeaseEnd, MissReason, OperationKind, Outcome, RefusalReason, SessionEnd, Tier
from telemetry.metrics.array_histogram import LIFECYCLE_BOUNDARIES_SECONDS
from telemetry.metrics.label_limiter import MAX_MODELS
from telemetry.metrics.metric import Attribute, Metric, counter, gauge, histogram

NO_ANSWER = "no answer"
"""Of a lookup that failed: why its tokens did not match."""

# What figures are split by

MODEL = Attribute(
    "model_name",
    f"as the engine gave it; the first {MAX_MODELS} names are told apart, the rest is `other`, and so is what belongs "
    "to an instance that nothing is known of, because its events were dropped",
)
INSTANCE = Attribute("instance_id", "as the engine gave it; few are remembered, the rest is forgotten or `other`")
OPERATION = Attribute("operation", "what was asked for; the inline calls count as the others", tuple(OperationKind))
MOVE = Attribute("operation", "what the bytes moved for", ("store", "retrieve"))
OUTCOME = Attribute("outcome", "how it ended", tuple(Outcome))
TIER = Attribute("tier", "where chunks are", tuple(Tier))
MISS_REASON = Attribute(
    "reason",
    "why; where every whole chunk matched, a tail may be left that is shorter than a chunk",
    (*MissReason, NO_ANSWER),
)
RESULT = Attribute("result", "what became of them; tail: less than a chunk", ("stored", "resident", "refused", "tail"))
REFUSAL_REASON = Attribute("reason", "why the first chunk was refused", tuple(RefusalReason))
DIRECTION = Attribute("direction", "store: out of the engine's blocks; retrieve: into them", ("store", "retrieve"))
BACKEND = Attribute("backend", "what moved the bytes: one of the few that this machine has, such as `host`")
STEP = Attribute("step", "what was done; steps overlap where they can", ("wait", "gather", "scatter", "copy"))
LEASE_END = Attribute("reason", "why it ended", tuple(LeaseEnd))
SESSION_END = Attribute("reason", "why it ended", tuple(SessionEnd))
DETACH_REASON = Attribute(
    "reason",
    "why it ended; lost: with work left and no DetachInstance, as when the engine died; failed: its device did; "
    "drained: the depot shut down",
    tuple(DetachReason),
)
SLOT_STATE = Attribute("state", "of slots that memory was cut into so far", ("used", "free"))
BLOCK_STATE = Attribute(
    "state",
    "owned: by a live session; released: with contents that the next session could reuse; unknown: neither",
    ("owned", "released", "unknown"),
)
TENANT = Attribute("tenant", "a name of the file of tenants")
CALLER = Attribute("tenant", "a name of the file of tenants; empty where nobody knows who called")
DENIED_REASON = Attribute(
    "reason",
    "as the error tells it",
    (
        *("CREDENTIALS_MISSING", "TOKEN_UNKNOWN", "TOKEN_EXPIRED", "CERTIFICATE_UNKNOWN", "CREDENTIALS_CONFLICT"),
        *("CREDENTIALS_REVOKED", "INSECURE_TRANSPORT", "ADMIN_ONLY", "OTHER_TENANT", "REGION_FORBIDDEN"),
    ),
)
LIMIT_REASON = Attribute("reason", "as the error tells it", ("TOO_MANY_RPCS", "TOO_MANY_BYTES", "TOO_MANY_OBJECTS"))
FILE = Attribute("file", "what is in it", ("tenants", "certificate"))
READ_RESULT = Attribute("result", "what became of the new content", ("used", "refused"))
RPC_SYSTEM = Attribute("rpc.system.name", "the system", ("grpc",))
RPC_METHOD = Attribute(
    "rpc.method", "a method of ours, such as `kvdepot.v1.CacheService/Lookup`; others are not measured"
)
REFUSED_METHOD = Attribute(
    "rpc.method", "a method that the depot serves, such as `kvdepot.v1.CacheService/Store`; all others are `other`"
)
REFUSED_REASON = Attribute(
    "reason", "as the error tells it, such as `RANK_ATTACHED`; the comments of protos/ say what each means"
)
RPC_STATUS = Attribute("rpc.response.status_code", "the gRPC status that the call ended with, such as `OK`")
RPC_KIND = Attribute(
    "kind", "stream: AttachInstance and WatchEvents, which stay open; call: all others", ("call", "stream")
)
EVENT_TYPE = Attribute("event_type", "a type of docs/events.md", tuple(EVENT_TYPES))
SUBSCRIBER = Attribute("subscriber", "its name; there is one for each that was built in or set")
STREAM = Attribute("stream", "where it would have been written; the log is in stderr", ("stdout", "stderr"))
CPU_MODE = Attribute("cpu.mode", "who ran", ("user", "system"))
GENERATION = Attribute("cpython.gc.generation", "of objects", ("0", "1", "2"))

CALL_BOUNDARIES_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LAG_BOUNDARIES_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
THROUGHPUT_BOUNDARIES = (
    *(50e6, 100e6, 250e6, 500e6, 1e9, 2.5e9, 5e9, 7.5e9, 10e9, 15e9, 20e9, 25e9, 30e9),
    *(40e9, 50e9, 75e9, 100e9, 200e9, 400e9),
)

# Operations

OPERATIONS = counter("kvdepot.operations", "{operation}", "Operations that ended.", OPERATION, OUTCOME, MODEL)
OPERATION_DURATION = histogram(
    "kvdepot.operation.duration",
    "s",
    "Time that operations took, from a valid request to its answer, waits included.",
    *(OPERATION, OUTCOME, MODEL),
    boundaries=CALL_BOUNDARIES_SECONDS,
)
OPERATION_IO = counter("kvdepot.operation.io", "By", "Bytes of the chunks that were stored and retrieved.", MOVE, MODEL)
LOOKUP_TOKENS = counter("kvdepot.lookup.tokens", "{token}", "Tokens that were looked up.", MODEL)
LOOKUP_MATCHED = counter("kvdepot.lookup.matched_tokens", "{token}", "Tokens that a lookup found.", TIER, MODEL)
LOOKUP_MISSED = counter(
    "kvdepot.lookup.missed_tokens",
    "{token}",
    "Tokens that a lookup did not find, by why the match is not longer; no answer: the lookup failed.",
    *(MISS_REASON, MODEL),
)
STORE_TOKENS = counter("kvdepot.store.tokens", "{token}", "Tokens that came to be stored.", RESULT, MODEL)
STORE_REFUSALS = counter(
    "kvdepot.store.refusals", "{operation}", "Stores of which chunks were refused.", REFUSAL_REASON, MODEL
)
RETRIEVE_TOKENS = counter("kvdepot.retrieve.tokens", "{token}", "Tokens that were retrieved.", TIER, MODEL)

# Transfers

TRANSFER_DURATION = histogram(
    "kvdepot.transfer.duration",
    "s",
    "Time that transfers between blocks and chunks took, waits included.",
    *(DIRECTION, BACKEND, OUTCOME),
    boundaries=CALL_BOUNDARIES_SECONDS,
)
TRANSFER_STEP_DURATION = histogram(
    "kvdepot.transfer.step.duration",
    "s",
    "Time from the first start to the last end of one kind of work within a transfer.",
    *(DIRECTION, BACKEND, STEP),
    boundaries=CALL_BOUNDARIES_SECONDS,
)
TRANSFER_THROUGHPUT = histogram(
    "kvdepot.transfer.throughput",
    "By/s",
    "Bytes of a transfer that went well, by its duration.",
    *(DIRECTION, BACKEND),
    boundaries=THROUGHPUT_BOUNDARIES,
)
TRANSFER_IO = counter("kvdepot.transfer.io", "By", "Bytes that transfers moved that went well.", DIRECTION, BACKEND)

# L1

L1_USED = gauge("kvdepot.l1.used", "By", "Bytes of the slots that chunks are in.")
L1_CAPACITY = gauge("kvdepot.l1.capacity", "By", "Bytes that L1 has.")
L1_POPULATED = gauge("kvdepot.l1.populated", "By", "Bytes of L1 whose pages are made.")
L1_SLOTS = gauge("kvdepot.l1.slots", "{slot}", "Slots that L1 is cut into so far.", SLOT_STATE)
L1_RESIDENT = gauge("kvdepot.l1.chunks.resident", "{chunk}", "Chunks that a lookup can find.")
L1_PROTECTED = gauge(
    "kvdepot.l1.chunks.protected", "{chunk}", "Chunks that can't be evicted: leased, being read or being written."
)
L1_STORED = counter("kvdepot.l1.chunks.stored", "{chunk}", "Chunks that were stored.", MODEL)
L1_EVICTED = counter("kvdepot.l1.chunks.evicted", "{chunk}", "Chunks that were evicted for others.")
L1_REFUSED = counter(
    "kvdepot.l1.chunks.refused", "{chunk}", "Chunks with bytes that were to be stored and were refused."
)
L1_CLEARED = counter("kvdepot.l1.chunks.cleared", "{chunk}", "Chunks that ClearCache dropped.")
CHUNK_LIFETIME = histogram(
    "kvdepot.l1.chunk.lifetime",
    "s",
    "From the store of a chunk to its eviction.",
    *(MODEL, TIER),
    boundaries=LIFECYCLE_BOUNDARIES_SECONDS,
)
CHUNK_IDLE = histogram(
    "kvdepot.l1.chunk.idle_before_evict",
    "s",
    "From the last use of a chunk to its eviction.",
    *(MODEL, TIER),
    boundaries=LIFECYCLE_BOUNDARIES_SECONDS,
)
CHUNK_REUSE_GAP = histogram(
    "kvdepot.l1.chunk.reuse_gap",
    "s",
    "How long a chunk that nobody had leased was unused, when a lookup leased it.",
    *(MODEL, TIER),
    boundaries=LIFECYCLE_BOUNDARIES_SECONDS,
)
CHUNK_REUSE_AFTER_EVICT = histogram(
    "kvdepot.l1.chunk.reuse_after_evict",
    "s",
    "From the eviction of a chunk to its being stored again: short ones say that L1 is too small.",
    *(MODEL, TIER),
    boundaries=LIFECYCLE_BOUNDARIES_SECONDS,
)

# Who is there

LEASES_LIVE = gauge("kvdepot.leases.live", "{lease}", "Leases that protect chunks now.")
LEASES_GRANTED = counter("kvdepot.leases.granted", "{lease}", "Leases that were granted.")
LEASES_ENDED = counter("kvdepot.leases.ended", "{lease}", "Leases that ended.", LEASE_END)
SESSIONS_LIVE = gauge("kvdepot.sessions.live", "{session}", "Sessions that have not ended.")
SESSIONS_STARTED = counter("kvdepot.sessions.started", "{session}", "Sessions that began.", MODEL)
SESSIONS_ENDED = counter("kvdepot.sessions.ended", "{session}", "Sessions that ended.", SESSION_END, MODEL)
INSTANCES_LIVE = gauge("kvdepot.instances.live", "{instance}", "Instances of which a rank is attached.")
ATTACHMENTS_LIVE = gauge("kvdepot.attachments.live", "{attachment}", "Ranks that are attached.")
ATTACHMENTS_STARTED = counter("kvdepot.attachments.started", "{attachment}", "Ranks that attached.", BACKEND, MODEL)
ATTACHMENTS_ENDED = counter("kvdepot.attachments.ended", "{attachment}", "Ranks that detached.", DETACH_REASON, MODEL)
ATTACHMENTS_MAPPED = gauge("kvdepot.attachments.mapped", "By", "Bytes of the engines' memory that are mapped.")

# The engines' blocks

BLOCKS = gauge(
    "kvdepot.l0.blocks", "{block}", "Blocks of the engines that were reported.", INSTANCE, MODEL, BLOCK_STATE
)
BLOCK_ALLOCATIONS = counter(
    "kvdepot.l0.block.allocations", "{block}", "Blocks that got contents they did not have before.", INSTANCE, MODEL
)
BLOCK_REUSES = counter(
    "kvdepot.l0.block.reuses",
    "{block}",
    "Blocks that nobody held, and whose contents were used again.",
    INSTANCE,
    MODEL,
)
BLOCK_SHARES = counter(
    "kvdepot.l0.block.shares", "{block}", "Blocks that one more session used while others held them.", INSTANCE, MODEL
)
BLOCK_EVICTIONS = counter(
    "kvdepot.l0.block.evictions", "{block}", "Blocks whose contents were given up.", INSTANCE, MODEL
)
MALFORMED_RECORDS = counter(
    "kvdepot.l0.records.malformed", "{record}", "Records of block reports that could not be followed to their end."
)

# Tenants, and who may call; the first ones are there where the depot has tenants

TENANT_OPERATIONS = counter(
    "kvdepot.tenant.operations", "{operation}", "Operations that ended.", OPERATION, OUTCOME, TENANT
)
TENANT_IO = counter("kvdepot.tenant.io", "By", "Bytes of the chunks that were stored and retrieved.", MOVE, TENANT)
TENANT_L1_USED = gauge("kvdepot.tenant.l1.used", "By", "Bytes of the slots that its chunks are in.", TENANT)
TENANT_SESSIONS = gauge("kvdepot.tenant.sessions.live", "{session}", "Sessions that have not ended.", TENANT)
TENANT_RPCS = gauge("kvdepot.tenant.rpcs.running", "{call}", "Calls that run now.", RPC_KIND, TENANT)
TENANT_IN_FLIGHT = gauge("kvdepot.tenant.in_flight", "By", "Bytes that move now.", TENANT)
TENANT_REFUSED = counter(
    "kvdepot.tenant.rpcs.refused", "{call}", "Calls that were refused by a limit.", LIMIT_REASON, TENANT
)
DENIED = counter("kvdepot.access.denied", "{call}", "Calls that were refused to their caller.", DENIED_REASON, CALLER)
FILES_READ = counter("kvdepot.files.read", "{read}", "Times that a file which had changed was read.", FILE, READ_RESULT)
FILES_BROKEN = gauge(
    "kvdepot.files.broken", "{file}", "1 while a file can't be used, so that what it held before goes on.", FILE
)
CERTIFICATE_TIME_LEFT = gauge(
    "kvdepot.tls.certificate.time_left", "s", "Until the server's certificate ends; there where TCP is served with TLS."
)

# The server

RPC_DURATION = histogram(
    "rpc.server.call.duration",
    "s",
    "Time that calls took in the server. AttachInstance and WatchEvents, which stay open, are left out.",
    *(RPC_SYSTEM, RPC_METHOD, RPC_STATUS),
    boundaries=CALL_BOUNDARIES_SECONDS,
)
RPCS_RUNNING = gauge("kvdepot.rpcs.running", "{call}", "Calls of ours that run now.", RPC_KIND)
RPCS_REFUSED = counter(
    "kvdepot.rpcs.refused",
    "{call}",
    "Calls that were refused, also of the streams that stay open.",
    *(REFUSED_METHOD, REFUSED_REASON),
)
DRAINING = gauge("kvdepot.draining", "", "1 while the depot lets its work end and takes no more; else 0.")
EVENT_LOOP_LAG = histogram(
    "kvdepot.event_loop.lag",
    "s",
    "How late a timer was that is due ten times a second.",
    boundaries=LAG_BOUNDARIES_SECONDS,
)
QUEUE_DEPTH = gauge("kvdepot.event_queue.depth", "{event}", "Events that wait for a subscriber.")
QUEUE_CAPACITY = gauge("kvdepot.event_queue.capacity", "{event}", "Events that may wait; more are dropped.")
QUEUE_LAG = gauge("kvdepot.event_queue.lag", "s", "Age of the oldest event that waits; 0 if there is none.")
EVENTS_PUBLISHED = counter("kvdepot.events.published", "{event}", "Events that were accepted.")
EVENTS_DELIVERED = counter("kvdepot.events.delivered", "{event}", "Events that every subscriber was handed.")
EVENTS_DROPPED = counter(
    "kvdepot.events.dropped",
    "{event}",
    "Events that were dropped, because too many waited; what is counted from events lacks them.",
    EVENT_TYPE,
)
SUBSCRIBER_ERRORS = counter(
    "kvdepot.subscriber.errors", "{error}", "Batches of events that a subscriber failed to take.", SUBSCRIBER
)
LOG_LINES_DROPPED = counter(
    "kvdepot.log.lines.dropped",
    "{line}",
    "Lines of the log, and what else is printed, that were dropped: nobody read them, or they could not be written.",
    STREAM,
)
PROCESS_CPU_TIME = counter("process.cpu.time", "s", "CPU time that the process took.", CPU_MODE)
PROCESS_MEMORY_USAGE = gauge("process.memory.usage", "By", "Bytes of memory that are resident, L1's included.")
# Prometheus keeps _count for histograms.
PROCESS_OPEN_FILES = gauge(
    "process.open_file_descriptor.count",
    "{file_descriptor}",
    "File descriptors that are open.",
    prometheus_stem="process.open_file_descriptors",
)
PROCESS_THREADS = gauge(
    "process.thread.count", "{thread}", "Threads of the process.", prometheus_stem="process.threads"
)
PROCESS_UPTIME = gauge("process.uptime", "s", "Time since the process was started.")
GC_COLLECTIONS = counter("cpython.gc.collections", "{collection}", "Runs of Python's garbage collector.", GENERATION)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order in which they stand above."""
