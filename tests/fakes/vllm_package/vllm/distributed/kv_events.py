"""KV events, as in vLLM 0.32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MEDIUM_CPU = "CPU"


@dataclass
class BlockStored:
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None


@dataclass
class BlockRemoved:
    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None
