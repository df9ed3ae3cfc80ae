"""The explanation of a miss as lines for people, made of what ExplainPrefix or a session tells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp

from kvdepot.cli.session_view import miss_reason, refusal_reason, view
from kvdepot.cli.terminal import printable
from kvdepot.v1 import cache_pb2, observability_pb2

MAX_RANKS = 16  # that have a line

_HINTS: dict[int, str] = {
    cache_pb2.MISS_REASON_SHORTER_THAN_CHUNK: "only whole chunks are stored: shorter prompts never match",
    cache_pb2.MISS_REASON_NEVER_STORED: "an engine must compute these tokens and store them first: has it ended that "
    "request, and did it store? `kvdepot sessions show` tells",
    cache_pb2.MISS_REASON_EVICTED: "L1 was too small to keep it until now: see 'Plan capacity' in docs/operations.md",
    cache_pb2.MISS_REASON_BEING_STORED: "try again; an engine waits for it with max_wait",
    cache_pb2.MISS_REASON_RANK_MISSING: "a match needs all ranks: look at the log of the worker that lacks it",
    cache_pb2.MISS_REASON_CLEARED: "ClearCache removed it: the depot's audit says who called",
    cache_pb2.MISS_REASON_CORRUPT: "its bytes had changed in memory, so the depot removed it: check the machine's "
    "memory, and which other processes can write to L1",
    cache_pb2.MISS_REASON_TIER_LATE: "`kvdepot status` shows how fast each tier is, and how much waits for it. A "
    "longer max_wait waits longer",
    cache_pb2.MISS_REASON_TIER_FAILED: "`kvdepot status` says which tier fails, why, and when it is tried again",
    cache_pb2.MISS_REASON_TIER_SLOWER_THAN_PREFILL: "the engine computes it sooner: `kvdepot status` shows how fast "
    "each tier is",
    cache_pb2.MISS_REASON_NO_SLOT: "all chunks of L1 are leased, pinned or in use, or prefetches have loaded as much "
    "as they may: enlarge L1, let engines release leases, or look at `kvdepot pins`",
    cache_pb2.MISS_REASON_NO_STATE: "an engine stores the states of few chunks, as at the end of a step: see 'Groups "
    "of states' in docs/engine.md",
    cache_pb2.MISS_REASON_UNKNOWN_IDENTITY: "do model, revision, parallelism, salt and adapter agree with the engine "
    "that stored?",
}
_REFUSED = "the engine tried to store it: see KvdepotStoresRefused in docs/operations.md"
_OTHER_KEYS = (
    "does the engine store by block hashes, as vLLM's connector does? Then give the hashes and --hash-block-size, or "
    "--session"
)
_DETAILED = (
    cache_pb2.MISS_REASON_RANK_MISSING,
    cache_pb2.MISS_REASON_UNKNOWN_IDENTITY,
    cache_pb2.MISS_REASON_NO_STATE,
)
_REMOVED = {
    observability_pb2.CHUNK_REMOVAL_EVICTED: "evicted",
    observability_pb2.CHUNK_REMOVAL_CLEARED: "cleared",
    observability_pb2.CHUNK_REMOVAL_REPLACED: "replaced by a store that failed",
    observability_pb2.CHUNK_REMOVAL_CORRUPT: "found corrupt",
}


def explained(answer: observability_pb2.ExplainPrefixResponse, adapter: str) -> str:
    """Return what the depot has of a prompt with this adapter, as lines."""
    chunk_size = max(1, answer.chunk_size)
    num_chunks = answer.prompt_tokens // chunk_size
    revision = f" at {printable(answer.model_revision)}" if answer.model_revision else ""
    who = f"{printable(answer.instance_id)}, {printable(answer.model_name)}{revision}"
    lines = [
        f"{who}: {answer.matched_tokens:,} of {answer.prompt_tokens:,} tokens match, "
        f"{answer.matched_tokens // chunk_size:,} of {num_chunks:,} chunks of {chunk_size:,} tokens"
    ]
    if answer.HasField("miss"):
        lines += _missing(answer, chunk_size)
    elif num_chunks * chunk_size < answer.prompt_tokens:
        lines.append(f"the last {answer.prompt_tokens - num_chunks * chunk_size:,} tokens are no whole chunk")
    if answer.tokens_in_tiers:
        tiers = ", ".join(f"{tokens:,} in {printable(name)}" for name, tokens in sorted(answer.tokens_in_tiers.items()))
        lines.append(f"tiers behind L1 have tokens behind these, which a lookup loads: {tiers}")
    lines += _absent(answer.ranks)
    if answer.unreachable_tokens:
        lines.append(f"{answer.unreachable_tokens:,} tokens behind it are in L1, and no lookup reaches them")
    lines += _others(answer, adapter)
    if answer.incomparable_chunks:
        lines.append(
            f"{answer.incomparable_chunks:,} chunks of the model have keys of another kind, by block hashes or by "
            "token ids: they can't be compared with this prompt"
        )
    if answer.HasField("miss") and not answer.tokens_in_tiers:
        hint = _OTHER_KEYS if answer.incomparable_chunks else _HINTS.get(answer.miss.reason)
        hint = _REFUSED if any(rank.refusal for rank in answer.ranks) else hint
        lines += [f"hint: {hint}"] if hint is not None else []
    return "\n".join(lines)


def explained_session(summary: cache_pb2.SessionSummary) -> str:
    """Return what a session remembers of its misses, as lines."""
    session = view(summary)
    lines = [f"{session.session_id} of {session.instance_id}, {session.model_name}: {session.state}"]
    totals = session.totals
    if totals is None:
        return "\n".join([*lines, "the depot is of an older version, which keeps no totals of sessions"])
    if not totals.num_lookups:
        return "\n".join([*lines, "it made no lookup that was answered"])
    lines.append(
        f"{totals.num_hits:,} of {totals.num_lookups:,} lookups hit; {totals.matched_tokens:,} of "
        f"{totals.prompt_tokens:,} tokens matched"
    )
    if not summary.totals.HasField("last_miss"):
        return "\n".join([*lines, "every lookup matched all whole chunks of its prompt"])
    lines.append("misses: " + ", ".join(f"{reason} {count:,}" for reason, count in totals.misses.items()))
    miss = summary.totals.last_miss
    lines.append(
        f"the last one, {_when(summary.totals.last_miss_time)}: {miss_reason(miss.reason)} at token {miss.at_token:,}: "
        f"{totals.last_miss}"
    )
    if miss.HasField("drop_time"):
        lines.append(f"the chunk had left L1 {_when(miss.drop_time)}")
    lines.append(
        "a session keeps no tokens: whether the chunk is there now is not known. To see that, give the prompt's tokens "
        "to `kvdepot explain`"
    )
    if miss.reason in _HINTS:
        lines.append(f"hint: {_HINTS[miss.reason]}")
    return "\n".join(lines)


def _missing(answer: observability_pb2.ExplainPrefixResponse, chunk_size: int) -> Iterator[str]:
    """Yield which chunk is missing, and what each rank has of it."""
    miss = answer.miss
    reason = miss_reason(miss.reason)
    if miss.reason == cache_pb2.MISS_REASON_SHORTER_THAN_CHUNK:
        yield f"{reason}: {printable(miss.detail)}"
        return
    detail = f": {printable(miss.detail)}" if miss.reason in _DETAILED else ""
    yield f"missing from token {miss.at_token:,} to {miss.at_token + chunk_size - 1:,}: {reason}{detail}"
    for rank in answer.ranks[:MAX_RANKS]:
        yield f"  rank {rank.rank}: {_rank(rank)}"
    if len(answer.ranks) > MAX_RANKS:
        yield f"  … and {len(answer.ranks) - MAX_RANKS:,} more ranks; --json has them"
    if miss.reason == cache_pb2.MISS_REASON_NEVER_STORED and answer.HasField("remembers_since"):
        yield f"or it left L1 long ago: the depot has forgotten what left before {_moment(answer.remembers_since)}"


def _rank(rank: observability_pb2.RankExplanation) -> str:
    if rank.state == observability_pb2.CHUNK_STATE_NOT_ATTACHED:
        return "not attached"
    parts = [f"has {rank.matched_tokens:,} tokens"]
    if rank.state == observability_pb2.CHUNK_STATE_RESIDENT:
        parts.append(f"the chunk is in L1, stored {_when(rank.store_time)}")
    elif rank.state == observability_pb2.CHUNK_STATE_BEING_STORED:
        parts.append("a call is storing the chunk")
    elif rank.removal == observability_pb2.CHUNK_REMOVAL_UNSPECIFIED:
        parts.append("the chunk was never stored")
    if rank.removal:
        parts.append(f"it was {_REMOVED.get(rank.removal, 'removed')} {_when(rank.remove_time)}")
    if rank.refusal:
        parts.append(f"a store of it was refused {_when(rank.refuse_time)}: {refusal_reason(rank.refusal)}")
    return "; ".join(parts)


def _absent(ranks: Sequence[observability_pb2.RankExplanation]) -> Iterator[str]:
    """Yield the groups whose beginning is absent in what matched."""
    for rank in ranks:
        for absent in rank.absent_beginnings:
            yield (
                f"rank {rank.rank} lacks bytes of group {absent.group} before token {absent.end_token:,}, which the "
                "engine did not store: a retrieve that needs them fails with BLOCK_ABSENT"
            )


def _others(answer: observability_pb2.ExplainPrefixResponse, adapter: str) -> Iterator[str]:
    """Yield where else more of the prompt is stored, and in what that differs."""
    world_size = len(answer.ranks)
    for other in answer.other_identities:
        differences = [
            f"{name} {_quoted(theirs)}, not {_quoted(ours)}"
            for name, theirs, ours in (
                ("model", other.model_name, answer.model_name),
                ("revision", other.model_revision, answer.model_revision),
                ("block hashes", other.block_hash_seed, answer.block_hash_seed if other.block_hash_seed else ""),
                ("adapter", other.adapter, adapter),
                ("ranks", other.world_size, world_size),
                ("tokens per chunk", other.chunk_size or answer.chunk_size, answer.chunk_size),
            )
            if theirs != ours
        ]
        if other.other_salt:
            differences.append("another salt")
        if other.other_geometry:
            differences.append("another geometry: layers, heads, sizes or element type")
        yield f"{other.matched_tokens:,} tokens are stored with {'; '.join(differences) or 'another rank layout'}"


def _quoted(value: object) -> str:
    return repr(printable(value)) if isinstance(value, str) else str(value)


def _when(moment: Timestamp) -> str:
    seconds = time.time() - moment.ToNanoseconds() / 1e9
    return f"{_ago(max(0.0, seconds))} ago ({_moment(moment)})"


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.1f} s"


def _moment(moment: Timestamp) -> str:
    return f"{moment.ToDatetime(UTC):%Y-%m-%d %H:%M:%S} UTC"
