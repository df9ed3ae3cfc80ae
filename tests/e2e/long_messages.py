"""Calls with the longest messages there are: what an engine may send, and what only an attacker does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from kvdepot import AsyncAttachment, AsyncDepotClient, KvShape, layouts
from kvdepot.requests import allocation_record, with_ids
from kvdepot.v1 import cache_pb2, observability_pb2

CACHE = "/kvdepot.v1.CacheService/"
OBSERVABILITY = "/kvdepot.v1.ObservabilityService/"
MIB = 1 << 20
MAX_BYTES = 16 * MIB - 1024
NUM_TOKENS = 4_000_000
BLOCK_SIZE = 256
TINY = KvShape(num_layers=1, num_blocks=64, block_size=BLOCK_SIZE, num_heads=1, head_size=1, dtype="uint8")
GROUPS = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(TINY)]
INSTANCE = "long"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongCall:
    """A message as it goes over the wire, and the field that the refusal names; empty: it is served."""

    method: str
    wire: bytes
    refused_field: str = ""


def prefix_of_hashes(num_hashes: int, num_bytes: int = 16, hash_block_size: int = 16) -> cache_pb2.Prefix:
    hashes = np.random.default_rng(3).bytes(num_hashes * num_bytes)
    return cache_pb2.Prefix(
        block_hashes=[hashes[at : at + num_bytes] for at in range(0, len(hashes), num_bytes)],
        hash_block_size=hash_block_size,
    )


def prefix_of_tokens(num_tokens: int = NUM_TOKENS, seed: int = 0) -> cache_pb2.Prefix:
    tokens = np.random.default_rng(seed).integers(0, 1 << 17, num_tokens, np.uint32)
    return with_ids(cache_pb2.Prefix(), token_ids=tokens)


def lookup(prefix: cache_pb2.Prefix, session_id: str = "s") -> bytes:
    return cache_pb2.LookupRequest(instance_id=INSTANCE, session_id=session_id, prefix=prefix).SerializeToString()


def report(records: list[Any], block_size: int = 16) -> bytes:
    return observability_pb2.ReportBlockAllocationRequest(
        instance_id=INSTANCE, model_name="m", block_size=block_size, records=records
    ).SerializeToString()


def repeated(field: bytes, within: bytes = b"") -> bytes:
    """A field over and over, to the longest message; `within` is the tag of the message that has it."""
    payload = field * (MAX_BYTES // len(field))
    if not within:
        return payload
    length, rest = b"", len(payload)
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return within + length + bytes([rest]) + payload
