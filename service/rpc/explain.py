"""Decodes and encodes the messages of ExplainPrefix."""

from __future__ import annotations

from kvdepot.v1 import observability_pb2
from service.depot.explain import Explanation, OtherIdentity, RankExplanation
from service.l1.keys import Prefix
from service.l1.past import RemovalReason
from service.rpc import encode
from service.rpc.decode import MAX_NAME_BYTES, prefix_of
from service.rpc.violations import MAX_ID_BYTES, Violations
from telemetry.kinds import ChunkState

# The messages' enums have the names of the kinds, behind a prefix.
_STATES = {each: observability_pb2.ChunkState.Value(f"CHUNK_STATE_{each.name}") for each in ChunkState}
_REMOVALS = {each: observability_pb2.ChunkRemoval.Value(f"CHUNK_REMOVAL_{each.name}") for each in RemovalReason}


def explained_prefix(message: observability_pb2.ExplainPrefixRequest) -> Prefix:
    """Return the prompt of a request, and check the names in it.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("instance_id", message.instance_id, max_bytes=MAX_ID_BYTES, required=False)
    wrong.check_text("model_name", message.model_name, max_bytes=MAX_NAME_BYTES, required=False)
    if bool(message.instance_id) == bool(message.model_name):
        what = "is set" if message.instance_id else "is missing"
        wrong.add("instance_id", f"{what}, and so is model_name: one of them is expected")
    prefix = prefix_of(wrong, "prefix", message.prefix)
    wrong.raise_any()
    return prefix


def response(explanation: Explanation, prefix: Prefix, *, is_admin: bool) -> observability_pb2.ExplainPrefixResponse:
    """Return what the depot has of a prompt. What chunks of all tenants have in common is for an admin only."""
    chunk_size = explanation.instance.chunk_size
    message = observability_pb2.ExplainPrefixResponse(
        instance_id=explanation.instance.instance_id,
        model_name=explanation.instance.model_name,
        chunk_size=chunk_size,
        prompt_tokens=prefix.num_tokens,
        matched_tokens=explanation.num_matched * chunk_size,
        miss=encode.miss(explanation.miss) if explanation.miss is not None else None,
        ranks=[_rank(each, chunk_size) for each in explanation.ranks],
        unreachable_tokens=explanation.num_unreachable * chunk_size,
        incomparable_chunks=explanation.num_incomparable,
        model_revision=explanation.instance.model_revision,
        block_hash_seed=explanation.instance.block_hash_seed,
        tokens_in_tiers=explanation.tokens_in_tiers,
        other_identities=[_other(each, prefix) for each in explanation.others],
    )
    if is_admin and explanation.remembers_since is not None:
        message.remembers_since.CopyFrom(encode.timestamp(explanation.remembers_since))
    return message


def _rank(rank: RankExplanation, chunk_size: int) -> observability_pb2.RankExplanation:
    message = observability_pb2.RankExplanation(
        rank=rank.rank,
        matched_tokens=rank.num_chunks * chunk_size,
        state=_STATES[rank.state] if rank.state else observability_pb2.CHUNK_STATE_UNSPECIFIED,
        absent_beginnings=[
            observability_pb2.AbsentBeginning(group=group, end_token=end_token)
            for group, end_token in sorted(rank.absent_until.items())
        ],
    )
    if rank.store_time is not None:
        message.store_time.CopyFrom(encode.timestamp(rank.store_time))
    if rank.tombstone is not None:
        message.removal = _REMOVALS[rank.tombstone.reason]
        message.remove_time.CopyFrom(encode.timestamp(rank.tombstone.time))
    if rank.refused is not None:
        message.refusal = encode.REFUSAL_REASONS[rank.refused.reason]
        message.refuse_time.CopyFrom(encode.timestamp(rank.refused.time))
    return message


def _other(other: OtherIdentity, prefix: Prefix) -> observability_pb2.OtherIdentity:
    return observability_pb2.OtherIdentity(
        model_name=other.stats.model_name,
        other_salt=other.stats.cache_salt != prefix.cache_salt,
        adapter=other.stats.adapter,
        world_size=other.stats.world_size,
        other_geometry=other.other_geometry,
        matched_tokens=other.num_tokens,
        chunk_size=other.stats.chunk_size,
        model_revision=other.stats.model_revision,
        block_hash_seed=other.stats.block_hash_seed,
    )
