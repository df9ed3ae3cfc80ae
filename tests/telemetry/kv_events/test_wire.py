"""The bytes of KV events: what vLLM, Dynamo and llm-d decode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from telemetry.kv_events.hashes import array, encode_hashes, encode_tokens
from telemetry.kv_events.named_chunk import Medium, NamedChunk
from telemetry.kv_events.wire import Wire

REPOSITORY = Path(__file__).parents[3]
VLLM_PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
HASHES = [bytes(range(32)), bytes(range(1, 33))]
LOW_BITS = [0x18191A1B1C1D1E1F, 0x191A1B1C1D1E1F20]


DECODE_WITH_VLLM = """
import json
import sys

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

decoder = msgspec.msgpack.Decoder(KVEventBatch)
for line in sys.stdin:
    batch = decoder.decode(bytes.fromhex(line))
    assert all(isinstance(event, AllBlocksCleared | BlockRemoved | BlockStored) for event in batch.events)
    events = [{"type": type(event).__name__} | msgspec.to_builtins(event) for event in batch.events]
    print(json.dumps({"time": batch.ts, "rank": batch.data_parallel_rank, "events": events}))
"""
"""Hex lines in, one line of JSON for each out."""


class BlockStored(msgspec.Struct, tag=True, kw_only=True):
    """The fields of vLLM 0.32, in its order."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None


class BlockRemoved(msgspec.Struct, tag=True, kw_only=True):
    block_hashes: list[int | bytes]
    medium: str | None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None


def encoded(hashes: list[bytes], *, as_ints: bool = True) -> bytes:
    return array(len(hashes), encode_hashes(hashes, as_ints=as_ints))


def chunk(*, as_ints: bool = True, **changes: Any) -> NamedChunk:
    fields: dict[str, Any] = {
        "name": b"name",
        "topic": b"topic",
        "parent_name": b"parent",
        "parent_hash": encode_hashes([HASHES[1]], as_ints=as_ints),
        "block_hashes": encoded(HASHES, as_ints=as_ints),
        "token_ids": array(8, encode_tokens(np.arange(8, dtype=np.uint32))),
        "block_size": 4,
        "num_blocks": 2,
        "adapter": "",
        "cache_salt": "",
    }
    return NamedChunk(**{**fields, **changes})


def decoded(wire: Wire, *events: bytes) -> Batch:
    return msgspec.msgpack.decode(wire.batch(1.5, events), type=Batch)


def test_a_batch_has_the_types_of_vllm() -> None:
    wire = Wire(as_maps=True)
    batch = decoded(
        wire,
        wire.stored(chunk(), Medium.L1),
        wire.removed(encoded(HASHES), Medium.DISK),
        wire.cleared,
    )
    assert (batch.ts, batch.data_parallel_rank) == (1.5, None)
    assert batch.events == [
        BlockStored(
            block_hashes=list(LOW_BITS),
            parent_block_hash=LOW_BITS[1],
            token_ids=list(range(8)),
            block_size=4,
            lora_id=None,
            medium="CPU_PINNED",
            lora_name=None,
        ),
        BlockRemoved(block_hashes=list(LOW_BITS), medium="DISK"),
        AllBlocksCleared(),
    ]


def test_whole_hashes_are_bytes() -> None:
    wire = Wire(as_maps=True)
    (stored,) = decoded(wire, wire.stored(chunk(as_ints=False), Medium.EXTERNAL)).events
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.parent_block_hash, stored.medium) == (HASHES, HASHES[1], "EXTERNAL")


def test_a_hash_of_four_bytes_is_a_number_as_well() -> None:
    wire = Wire(as_maps=True)
    (stored,) = decoded(wire, wire.stored(chunk(block_hashes=encoded([b"\0\0\1\2"])), Medium.L1)).events
    assert isinstance(stored, BlockStored)
    assert stored.block_hashes == [0x102]


def test_a_short_hash_keeps_its_place_among_long_ones() -> None:
    hashes = [HASHES[0], b"\0\0\1\2", HASHES[1]]
    assert msgspec.msgpack.decode(encoded(hashes)) == [LOW_BITS[0], 0x102, LOW_BITS[1]]
    assert msgspec.msgpack.decode(encoded(hashes, as_ints=False)) == hashes


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 65_535, 65_536])
def test_arrays_of_every_length_decode(num_tokens: int) -> None:
    tokens = np.arange((1 << 32) - num_tokens, 1 << 32, dtype=np.uint32)
    assert msgspec.msgpack.decode(array(num_tokens, encode_tokens(tokens))) == tokens.tolist()


def test_a_chunk_without_tokens_has_an_empty_list() -> None:
    wire = Wire(as_maps=True)
    (stored,) = decoded(wire, wire.stored(chunk(token_ids=b""), Medium.L1)).events
    assert isinstance(stored, BlockStored)
    assert stored.token_ids == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"adapter": "lora", "cache_salt": "salt", "parent_name": b""}, [("lora", "salt"), ("lora",)]),
        ({"adapter": "lora", "cache_salt": "salt"}, [("lora",), ("lora",)]),
        ({"cache_salt": "salt", "parent_name": b""}, [("salt",), None]),
        ({"cache_salt": "salt"}, [None, None]),
        ({}, None),
    ],
)
def test_adapter_and_salt_are_extra_keys_as_in_vllm(fields: dict[str, Any], expected: Any) -> None:
    wire = Wire(as_maps=True)
    (stored,) = decoded(wire, wire.stored(chunk(**fields), Medium.L1)).events
    assert isinstance(stored, BlockStored)
    assert stored.extra_keys == expected
    assert stored.lora_name == fields.get("adapter")


def test_events_can_be_arrays_that_begin_with_their_type() -> None:
    wire = Wire(as_maps=False)
    events = [wire.stored(chunk(), Medium.L1), wire.removed(encoded(HASHES[:1]), Medium.L1), wire.cleared]
    assert [msgspec.msgpack.decode(event) for event in events] == [
        ["BlockStored", LOW_BITS, LOW_BITS[1], list(range(8)), 4, None, "CPU_PINNED", None],
        ["BlockRemoved", LOW_BITS[:1], "CPU_PINNED"],
        ["AllBlocksCleared"],
    ]


def test_a_recorded_batch_stays_as_it_is() -> None:
    """Readers of earlier depots must be able to read it."""
    wire = Wire(as_maps=True)
    batch = wire.batch(1.5, [wire.removed(encoded(HASHES[:1]), Medium.L1), wire.cleared])
    assert batch == (
        b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x92"
        b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\xcf\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\xa6medium\xaaCPU_PINNED"
        b"\x81\xa4type\xb0AllBlocksCleared\xc0"
    )


@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="vLLM is not installed in .venv-vllm")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_vllm_decodes_every_event() -> None:
    wire = Wire(as_maps=True)
    whole = [wire.stored(chunk(as_ints=False, adapter="lora", parent_name=b"", cache_salt="x"), Medium.DISK)]
    batches = [
        wire.batch(1.5, [wire.stored(chunk(), Medium.L1), wire.removed(encoded(HASHES), Medium.L1)]),
        wire.batch(2.5, [*whole, wire.cleared]),
    ]
    result = subprocess.run(
        [VLLM_PYTHON, "-c", DECODE_WITH_VLLM],
        input="\n".join(batch.hex() for batch in batches),
        env={**os.environ, "PYTHONPATH": "", "VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    first, second = map(msgspec.json.decode, result.stdout.splitlines()[-2:])
    assert (first["time"], first["rank"]) == (1.5, None)
    stored, removed = first["events"]
    assert stored["block_hashes"] == removed["block_hashes"] == LOW_BITS
    assert stored["token_ids"] == list(range(8))
    assert [event["type"] for event in second["events"]] == ["BlockStored", "AllBlocksCleared"]
    assert second["events"][0]["extra_keys"] == [["lora", "x"], ["lora"]]
