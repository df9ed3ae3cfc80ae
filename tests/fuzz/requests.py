"""Requests that the depot accepts: written by hand where they must fit its state, the others made by descriptor."""

from __future__ import annotations

from random import Random

from kvdepot.v1 import cache_pb2, observability_pb2
from tests.fuzz import values
from tests.fuzz.rpcs import Message, Rpc
from tests.fuzz.things import CHUNK_SIZE, Grant, Things, num_tokens

MOST_DEPTH = 4
PIECE_BYTES = 1 << 20


def valid(rpc: Rpc, things: Things, random: Random, grant: Grant | None = None) -> list[Message]:
    """Return the messages of a call that makes sense, as far as is known; with a lease if it takes one."""
    match rpc.name:
        case "AttachInstance":
            return [_copy(random.choice(things.visitors).request)]
        case "Store":
            return [_store(things, random)]
        case "Retrieve" | "RetrieveInline":
            return [_retrieve(rpc, things, random, grant or things.grant(random))]
        case "StoreInline":
            return _store_inline(things, random)
        case "ReportBlockAllocation":
            return [_report(things, random)]
        case "WatchEvents" | "ListSessions" | "ListPins":  # mostly without filters
            request = made(rpc.request, things, random, share=0.25)
            if rpc.name in ("ListSessions", "ListPins"):
                request.page_size = random.choice((0, 1, 10))
            return [request]
        case "ExplainPrefix":
            name = random.choice(("instance_id", "model_name"))
            return [rpc.request(**{name: things.name(name, random)}, prefix=things.prefix(random))]
        case "Prefetch" | "PinPrefix":
            name = random.choice(("instance_id", "model_name"))
            request = rpc.request(**{name: things.name(name, random)}, prefix=things.prefix(random))
            if rpc.name == "PinPrefix":
                request.ttl.FromMilliseconds(random.choice((1, 50, 500, 10_000)))
                request.fixed_expire_time = random.random() < 0.5
            return [request]
        case "ClearCache":  # mostly of something, so that chunks stay
            request = made(rpc.request, things, random, share=0.4)
            request.model_name = request.model_name or things.name("model_name", random)
            return [request]
        case "SetLogLevel":  # the log itself stays as it is: it says what went wrong
            return [rpc.request(level=random.randrange(6), logger=random.choice(("asyncio", "no.such.logger")))]
    messages = [made(rpc.request, things, random) for _ in range(random.randint(1, 3) if rpc.streams_requests else 1)]
    if {"instance_id", "session_id"} <= set(rpc.request.DESCRIPTOR.fields_by_name) and random.random() < 0.8:
        for message in messages:
            message.instance_id, message.session_id = things.session(random)
    return messages


def made(request: type[Message], things: Things, random: Random, *, share: float = 0.8, depth: int = 0) -> Message:
    """Make a message with this share of its fields set, to existing values of the field's name where there are any."""
    message = request()
    if isinstance(message, cache_pb2.Prefix):
        return things.prefix(random)
    for field in message.DESCRIPTOR.fields:
        if random.random() >= share or (field.message_type is not None and depth >= MOST_DEPTH):
            continue
        if field.message_type is not None:
            is_map = field.message_type.GetOptions().map_entry
            part = made(field.message_type._concrete_class, things, random, share=share, depth=depth + 1)
            if is_map:
                continue
            if field.is_repeated:
                getattr(message, field.name).append(part)
            else:
                getattr(message, field.name).CopyFrom(part)
        elif field.is_repeated:
            getattr(message, field.name).append(plausible(field, things, random))
        else:
            setattr(message, field.name, plausible(field, things, random))
    return message


def plausible(field: values.Field, things: Things, random: Random) -> object:
    """Return a value that a client might send."""
    if field.cpp_type == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES:
        return things.name(field.name, random)
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return random.choice((0, 0, 1, CHUNK_SIZE))
    return values.scalar(field, random)


def lookup_of(rpc: Rpc, things: Things, random: Random) -> tuple[cache_pb2.LookupRequest, list[Message]]:
    """Return the calls that give a session a lease: the lookup, and an inline store before it for each rank."""
    homes = [rank for rank in things.homes if rank.request.regions or rpc.name == "RetrieveInline"]
    instance_id = random.choice([rank.request.instance_id for rank in homes])
    prefix = things.prefix(random)
    lookup = cache_pb2.LookupRequest(
        instance_id=instance_id, session_id=things.name("session_id", random), prefix=prefix
    )
    messages = [
        message
        for rank in things.homes
        if rank.request.instance_id == instance_id
        for message in _inline(rank.chunk_bytes, rank.request, lookup.session_id, prefix, 0)
    ]
    return lookup, messages


def _copy(message: Message) -> Message:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _store(things: Things, random: Random) -> Message:
    rank = random.choice([rank for rank in things.homes if rank.request.regions or random.random() < 0.1])
    prefix = things.prefix(random)
    start_token = random.choice((0, 0, 0, CHUNK_SIZE)) if num_tokens(prefix) >= CHUNK_SIZE else 0
    return cache_pb2.StoreRequest(
        instance_id=rank.request.instance_id,
        rank=rank.request.rank,
        session_id=things.name("session_id", random),
        prefix=prefix,
        start_token=start_token,
        block_tables=rank.tables(num_tokens(prefix) - start_token, random),
    )


def _store_inline(things: Things, random: Random) -> list[Message]:
    rank = random.choice(things.homes)
    prefix = things.prefix(random)
    start_token = random.choice((0, 0, CHUNK_SIZE)) if num_tokens(prefix) >= CHUNK_SIZE else 0
    session_id = things.name("session_id", random)
    header, *pieces = _inline(rank.chunk_bytes, rank.request, session_id, prefix, start_token)
    data = b"".join(piece.data for piece in pieces)
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(4)))
    parts = [data[first:last] for first, last in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [header, *(cache_pb2.StoreInlineRequest(data=part) for part in parts if part)]


def _inline(
    chunk_bytes: int, of: cache_pb2.AttachInstanceRequest, session_id: str, prefix: cache_pb2.Prefix, start_token: int
) -> list[Message]:
    header = cache_pb2.StoreInlineHeader(
        instance_id=of.instance_id, rank=of.rank, session_id=session_id, prefix=prefix, start_token=start_token
    )
    num_chunks = num_tokens(prefix) // CHUNK_SIZE - start_token // CHUNK_SIZE
    data = bytes([of.rank + 1]) * (chunk_bytes * max(0, num_chunks))
    pieces = [data[first : first + PIECE_BYTES] for first in range(0, len(data), PIECE_BYTES)]
    return [
        cache_pb2.StoreInlineRequest(header=header),
        *(cache_pb2.StoreInlineRequest(data=piece) for piece in pieces),
    ]


def _retrieve(rpc: Rpc, things: Things, random: Random, grant: Grant) -> Message:
    rank = things.rank_of(grant.instance_id, random)
    request = rpc.request(
        instance_id=grant.instance_id,
        rank=rank.request.rank,
        session_id=grant.session_id,
        lease_id=grant.lease_id,
        skip_tokens=random.choice((0, 0, 0, CHUNK_SIZE)) if grant.num_tokens > CHUNK_SIZE else 0,
    )
    if "block_tables" in rpc.request.DESCRIPTOR.fields_by_name:
        request.block_tables.extend(rank.tables(grant.num_tokens, random))
    return request


def _report(things: Things, random: Random) -> Message:
    """Return reports of a scheduler about a few sessions: growing tables and reused blocks."""
    block_size = random.choice((4, 16))
    records = [
        observability_pb2.BlockAllocationRecord(
            session_id=things.name("session_id", random),
            block_ids=random.sample(range(64), num_blocks := random.randrange(5)),
            token_ids=[random.randrange(1 << 32) for _ in range(num_blocks * block_size)],
            reused_block_ids=random.sample(range(64), random.randrange(3)),
            resumed=random.random() < 0.1,
        )
        for _ in range(random.randint(1, 4))
    ]
    return observability_pb2.ReportBlockAllocationRequest(
        instance_id=things.name("instance_id", random),
        model_name=things.name("model_name", random),
        block_size=block_size,
        records=records,
    )
