"""The blocks in the depot as vLLM's own KV events, which its scheduler publishes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    to_event_extra_keys,
)

from kvdepot.connector.published_blocks import BlockChanges, StoredBlocks, block_hashes


def events_of(changes: BlockChanges, group: int, block_size: int, hash_block_size: int) -> Iterator[Any]:
    """Yield the events of what has changed. The first ones are those of stored blocks.

    `group` is vLLM's group of the blocks. Both sizes are in tokens: of its blocks, and of what a request's hash covers.
    """
    for stored in changes.stored:
        yield _stored(stored, group, block_size, hash_block_size)
    if changes.removed_hashes:
        hashes = [maybe_convert_block_hash(each) for each in changes.removed_hashes]
        yield BlockRemoved(block_hashes=hashes, medium=MEDIUM_CPU, group_idx=group)


def _stored(stored: StoredBlocks, group: int, block_size: int, hash_block_size: int) -> BlockStored:
    request: Any = stored.request
    start, end = stored.start_token, stored.end_token
    extra_keys, image = [], 0
    for token in range(start, end, block_size):
        keys, image = generate_block_hash_extra_keys(request, token, token + block_size, image)
        extra_keys.append(keys)
    lora = request.lora_request
    return BlockStored(
        block_hashes=[
            maybe_convert_block_hash(each) for each in block_hashes(request, start, end, block_size, hash_block_size)
        ],
        parent_block_hash=(
            maybe_convert_block_hash(request.block_hashes[start // hash_block_size - 1]) if start else None
        ),
        token_ids=list(request.all_token_ids[start:end]),
        block_size=block_size,
        lora_id=lora.adapter_id if lora is not None else None,
        medium=MEDIUM_CPU,
        lora_name=lora.name if lora is not None else None,
        extra_keys=to_event_extra_keys(extra_keys),
        group_idx=group,
    )
