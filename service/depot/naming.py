"""What a depot tells those who name its chunks for routers: which blocks of which prompt a chunk has.

Events of the bus have keys only: subscribers of others must not get tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from service.depot.instances import Attachment
from service.l1.keys import ChunkKey, Namespace, Prefix, chunk_keys

CHUNKS_PER_STEP = 16  # to name one takes some 15 microseconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A prompt that an instance stored or found. `namespace` is the one of rank 0, whose keys name the chunks.

    `block_size` counts the tokens of a block of the engine.
    """

    prefix: Prefix
    namespace: Namespace
    model_name: str
    tenant: str
    world_size: int
    block_size: int
    chunk_size: int


class ChunkNamer(Protocol):
    """What names chunks. Nothing that it does changes what the cache does, and no method raises."""

    def tells(self, tenant: str) -> bool:
        """Return whether chunks of a tenant are named."""

    def wants(self, key: ChunkKey, *, has_tokens: bool) -> bool:
        """Return whether the chunk of a key has no name, or has tokens now that its name lacks."""

    def name(
        self, prompt: Prompt, position: int, key: ChunkKey, key_before: ChunkKey | None, keys: Sequence[ChunkKey | None]
    ) -> None:
        """Name the chunk at a position of a prompt. `keys[rank]` are those that are known.

        `key` is the one of rank 0, and `key_before` that of the chunk before it.
        """


def naming(
    namer: ChunkNamer,
    first: Attachment | None,
    tenant: str,
    prefix: Prefix,
    keys_by_rank: Mapping[int, Sequence[ChunkKey]],
    positions: Iterable[int],
) -> Iterator[None]:
    """Name the chunks at these positions, in order and in short steps. `keys_by_rank[rank][position]` is a chunk's key.

    `first` is the instance's rank 0. Without it, the instance finds no chunks, and names none.
    """
    if first is None:
        return
    has_tokens = len(prefix.token_ids) > 0
    wanted = [
        position
        for position in positions
        if any(namer.wants(keys[position], has_tokens=has_tokens) for keys in keys_by_rank.values())
    ]
    if not wanted:
        return
    prompt = Prompt(
        prefix=prefix,
        namespace=first.identity.namespace(prefix),
        model_name=first.model_name,
        tenant=tenant,
        world_size=first.world_size,
        block_size=min(group.block_size for group in first.groups),
        chunk_size=first.chunk_size,
    )
    known = keys_by_rank.get(0)
    first_keys: Sequence[ChunkKey] = known if known is not None else []
    more_keys = chunk_keys(prompt.namespace, prefix, prompt.chunk_size)
    for number, position in enumerate(wanted):
        if known is None:
            while len(first_keys) <= position:
                first_keys = [*first_keys, *islice(more_keys, CHUNKS_PER_STEP)]
                yield
        before = first_keys[position - 1] if position else None
        keys = [keys_by_rank[rank][position] if rank in keys_by_rank else None for rank in range(first.world_size)]
        namer.name(prompt, position, first_keys[position], before, keys)
        if number % CHUNKS_PER_STEP == CHUNKS_PER_STEP - 1:
            yield
