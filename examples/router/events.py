"""KV events as they come from the wire: a msgpack batch, whose events are maps or arrays.

The format is vLLM's (`vllm/distributed/kv_events.py`), which Dynamo and llm-d read as well.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
BlockHash = int | bytes
"""The publisher's name of a block and all blocks before it. Only the same publisher's events compare with it."""


class BlockStored(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """Blocks that follow each other are in a medium now. `token_ids` has `block_size` tokens for each of them.

    `parent_block_hash` is the block before the first one, None at the start of a prompt. `extra_keys` has what names
    a block beside its tokens: the adapter's name, images, a salt.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[TokenId]
    block_size: Annotated[int, msgspec.Meta(ge=1)]
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """Blocks are no longer in a medium. Another medium may still have them."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """The publisher holds nothing, in any medium. What it holds after all is in the events that follow."""


Event = BlockStored | BlockRemoved | AllBlocksCleared

_FIELDS_OF_ARRAYS = {
    "BlockStored": (
        *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
        *("lora_name", "extra_keys", "group_idx"),
    ),
    "BlockRemoved": ("type", "block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": ("type",),
}
"""Newer publishers have more fields behind these, which are not needed here."""


class BadBatch(ValueError):
    """Bytes that are no batch of KV events."""


def decode_batch(payload: bytes) -> list[Event]:
    """Return the events of a batch in order. Events of a kind that is not known here are left out.

    Raises: BadBatch.
    """
    try:
        batch = msgspec.msgpack.decode(payload, type=list[object])
        events = [_as_map(event) for event in msgspec.convert(batch[1], list[list[object] | dict[str, object]])]
        return [msgspec.convert(event, Event) for event in events if event.get("type") in _FIELDS_OF_ARRAYS]
    except (msgspec.MsgspecError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise BadBatch(f"not a batch of KV events: {error}") from error


def _as_map(event: list[object] | dict[str, object]) -> dict[str, object]:
    if isinstance(event, dict):
        return event
    kind = event[0]
    return dict(zip(_FIELDS_OF_ARRAYS.get(kind, ()) if isinstance(kind, str) else (), event, strict=False))
