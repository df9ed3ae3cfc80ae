"""Names chunks by the blocks of the engine that stored them.

If the engine gave hashes, a block has the hash that the engine gave. If it gave token ids, the last block of a chunk
has the chunk's own key as its hash. So chunks whose blocks have other sizes continue each other. The blocks before it
have the key as well, but for its last 8 bytes: these are the output of `blake3(key)`, in order. If the engine gave
both, and its blocks are shorter than those it gave hashes of, the blocks in between are named alike, by the hash after
them.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from service.depot.naming import Prompt
from service.l1.keys import ChunkKey
from telemetry.kv_events.hashes import INT_BYTES, array, encode_hashes, encode_tokens
from telemetry.kv_events.named_chunk import NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.topics import Topics


class Namer:
    """Puts the names of chunks into a table. It implements `ChunkNamer`. `as_ints`: readers get hashes as numbers."""

    def __init__(self, names: Names, topics: Topics, *, as_ints: bool) -> None:
        self._names = names
        self._topics = topics
        self._as_ints = as_ints

    def __repr__(self) -> str:
        return f"<Namer {self._names!r}>"

    def tells(self, tenant: str) -> bool:
        """Return whether chunks of a tenant are named."""
        return self._topics.tells(tenant)

    def wants(self, key: ChunkKey, *, has_tokens: bool) -> bool:
        """Return whether the chunk of a key has no name, or has tokens now that its name lacks."""
        known = self._names.of_key(key)
        return known is None or known.has_expired or (has_tokens and not known.token_ids)

    def name(
        self, prompt: Prompt, position: int, key: ChunkKey, key_before: ChunkKey | None, keys: Sequence[ChunkKey | None]
    ) -> None:
        """Name the chunk at a position of a prompt: see `ChunkNamer`."""
        prefix = prompt.prefix
        topic = self._topics.topic(prompt.model_name, prompt.tenant)
        start = position * prompt.chunk_size
        tokens = prefix.token_ids[start : start + prompt.chunk_size]
        if prefix.hash_block_size:
            per_chunk = prompt.chunk_size // prefix.hash_block_size
            given = prefix.block_hashes[position * per_chunk : (position + 1) * per_chunk]
            before = prefix.block_hashes[position * per_chunk - 1] if position else None
            head = b"#".join((topic, str(prompt.chunk_size).encode(), b""))
            name, parent_name = head + given[-1], head + before if before is not None else b""
            block_size = prefix.hash_block_size
            if len(tokens):
                block_size = _block_size(prompt.block_size, prefix.hash_block_size)
            hashes = [each for own in given for each in _ending_with(own, prefix.hash_block_size // block_size)]
        else:
            name, parent_name, before = key, key_before or b"", key_before
            block_size = _block_size(prompt.block_size, prompt.chunk_size)
            hashes = _ending_with(key, prompt.chunk_size // block_size)
        chunk = NamedChunk(
            name=name,
            topic=topic,
            parent_name=parent_name,
            parent_hash=encode_hashes([before], as_ints=self._as_ints) if before is not None else None,
            block_hashes=array(len(hashes), encode_hashes(hashes, as_ints=self._as_ints)),
            token_ids=array(len(tokens), encode_tokens(tokens)) if len(tokens) else b"",
            block_size=block_size,
            num_blocks=len(hashes),
            adapter=prefix.adapter,
            cache_salt=prefix.cache_salt,
        )
        self._names.add(chunk, prompt.namespace, keys)


def _block_size(block_size: int, num_tokens: int) -> int:
    """Return the size of an engine's block if so many tokens are whole blocks, else their number."""
    return block_size if block_size and num_tokens % block_size == 0 else num_tokens


def _ending_with(own: bytes, num_blocks: int) -> list[bytes]:
    """Return the hashes of blocks, of which the last one has its own."""
    if num_blocks == 1:
        return [own]
    head, tails = own[:-INT_BYTES], blake3(own).digest(length=INT_BYTES * (num_blocks - 1))
    return [*[head + tails[first : first + INT_BYTES] for first in range(0, len(tails), INT_BYTES)], own]
