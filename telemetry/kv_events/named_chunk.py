"""A chunk as readers of KV events know it: the hashes and the tokens of the engine's blocks in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Medium(IntEnum):
    """Where chunks are, from fast to slow. A reader sees the names of `MEDIUM_NAMES`."""

    L1 = 1
    DISK = 2
    EXTERNAL = 4


ALL_MEDIA = int(Medium.L1 | Medium.DISK | Medium.EXTERNAL)
PENDING = 8
"""A chunk that is being written or loaded. It is held nowhere yet, and its name is kept."""

MEDIUM_NAMES = {Medium.L1: "CPU_PINNED", Medium.DISK: "DISK", Medium.EXTERNAL: "EXTERNAL"}


class EventType(StrEnum):
    """The events of the format."""

    STORED = "BlockStored"
    REMOVED = "BlockRemoved"
    CLEARED = "AllBlocksCleared"


@dataclass(slots=True, eq=False, kw_only=True)
class NamedChunk:
    """One chunk of a prompt. All ranks of an instance have it under keys of their own.

    `name` is unique, `parent_name` is that of the chunk before it; empty: it is the first one of its prompt.
    `parent_hash` is an encoded hash, `block_hashes` and `token_ids` are encoded arrays, as readers get them: see
    `hashes`. `token_ids` are empty if the engine gave none. `holders[family][rank]` is the key of a rank's chunk, None
    as long as it is not known. A family is the instances that share chunks. `told` has the media that readers were
    told, in the picture of the number `generation`. `replaced_hashes` are those that readers were told before the chunk
    got better names.
    """

    name: bytes
    topic: bytes
    parent_name: bytes
    parent_hash: bytes | None
    block_hashes: bytes
    token_ids: bytes
    block_size: int
    num_blocks: int
    adapter: str
    cache_salt: str
    holders: dict[bytes, list[bytes | None]] = field(default_factory=dict)
    told: int = 0
    generation: int = 0
    has_expired: bool = False
    is_forgotten: bool = False
    replaced_hashes: bytes | None = None

    @property
    def num_bytes(self) -> int:
        """The memory that it takes, about."""
        keys = sum(map(len, self.holders.values()))
        return 700 + len(self.block_hashes) + len(self.token_ids) + 160 * keys + 250 * len(self.holders)
