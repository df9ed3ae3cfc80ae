"""KV events are read from maps and from arrays, and what is not understood harms nothing."""

from __future__ import annotations

import msgspec
import pytest

from examples.router.events import AllBlocksCleared, BadBatch, BlockRemoved, BlockStored, decode_batch

STORED = BlockStored(
    block_hashes=[2**64 - 1, 7],
    parent_block_hash=5,
    token_ids=[1, 2, 3, 4],
    block_size=2,
    medium="CPU_PINNED",
    lora_name="poems",
    extra_keys=[["poems"], None],
    group_idx=0,
)


def batch(*events: object) -> bytes:
    return msgspec.msgpack.encode([1.5, events, None])


def test_maps_are_read_as_vllm_writes_them() -> None:
    stored = {
        "type": "BlockStored",
        "block_hashes": [2**64 - 1, 7],
        "parent_block_hash": 5,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "lora_id": None,
        "medium": "CPU_PINNED",
        "lora_name": "poems",
        "extra_keys": [["poems"], None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    removed = {"type": "BlockRemoved", "block_hashes": [7], "medium": "DISK"}
    assert decode_batch(batch(stored, removed, {"type": "AllBlocksCleared"})) == [
        STORED,
        BlockRemoved(block_hashes=[7], medium="DISK"),
        AllBlocksCleared(),
    ]


def test_arrays_are_read_with_fields_left_out_and_with_newer_ones() -> None:
    stored = ["BlockStored", [2**64 - 1, 7], 5, [1, 2, 3, 4], 2, None, "CPU_PINNED", "poems", [["poems"], None], 0]
    assert decode_batch(batch([*stored, "full_attention", None, "LOCAL"], ["AllBlocksCleared"])) == [
        STORED,
        AllBlocksCleared(),
    ]
    assert decode_batch(batch(["BlockRemoved", [b"ab"]])) == [BlockRemoved(block_hashes=[b"ab"])]


def test_events_of_an_unknown_kind_are_left_out() -> None:
    assert decode_batch(batch({"type": "BlockMoved"}, ["BlockMoved", 1], {}, ["AllBlocksCleared"])) == [
        AllBlocksCleared()
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([1.5]),
        msgspec.msgpack.encode([1.5, 3, None]),
        batch([]),
        batch(3),
        batch({"type": []}),
        batch({"type": "BlockRemoved"}),
        batch({"type": "BlockRemoved", "block_hashes": [1.5]}),
        batch(["BlockStored", [1], None, [-1], 1]),
        batch(["BlockStored", [1], None, [], 0]),
    ],
)
def test_bytes_that_are_no_batch_are_refused(payload: bytes) -> None:
    with pytest.raises(BadBatch, match="not a batch"):
        decode_batch(payload)
