"""The hashes of blocks: those of the engine, or chains that other processes compute alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3

from service.depot.naming import Prompt
from service.kv_events.naming import Namer
from service.l1.keys import ChunkKey, Namespace, Prefix, chunk_keys
from telemetry.kv_events.named_chunk import NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.topics import Topics

CHUNK, BLOCK = 8, 4
NAMESPACE = Namespace(b"n" * 32)
TOKENS = np.arange(2 * CHUNK, dtype=np.uint32)
NO_TOKENS = np.array([], dtype=np.uint32)


def names_of(prefix: Prefix, *, block_size: int = BLOCK, as_ints: bool = False) -> list[NamedChunk]:
    names = Names(1 << 20)
    namer = Namer(names, Topics("kv@{pod}@{model}", "pod"), as_ints=as_ints)
    keys = list(chunk_keys(NAMESPACE, prefix, CHUNK))
    prompt = Prompt(
        prefix=prefix,
        namespace=NAMESPACE,
        model_name="m",
        tenant="",
        world_size=1,
        block_size=block_size,
        chunk_size=CHUNK,
    )
    for position, key in enumerate(keys):
        assert namer.wants(key, has_tokens=False)
        namer.name(prompt, position, key, keys[position - 1] if position else None, [key])
        assert not namer.wants(key, has_tokens=False)
    names.check()
    return list(names.all())


def token_bytes(first: int, end: int) -> bytes:
    return TOKENS[first:end].astype("<u4").tobytes()


def test_hashes_of_tokens_are_chains_whose_chunks_end_with_their_keys() -> None:
    first, second = names_of(Prefix(token_ids=TOKENS))
    keys = list(chunk_keys(NAMESPACE, Prefix(token_ids=TOKENS), CHUNK))
    assert first.block_hashes == (blake3(NAMESPACE + token_bytes(0, 4)).digest(), keys[0])
    assert second.block_hashes == (blake3(keys[0] + token_bytes(8, 12)).digest(), keys[1])
    assert (first.parent_hash, second.parent_hash) == (None, (keys[0],))
    assert (first.parent_name, second.parent_name) == (b"", first.name)
    assert second.token_ids == token_bytes(8, 16)
    assert (first.topic, first.block_size, first.num_blocks) == (b"kv@pod@m", BLOCK, 2)


def test_chunks_stored_in_other_blocks_continue_each_other() -> None:
    small, large = names_of(Prefix(token_ids=TOKENS), block_size=2), names_of(Prefix(token_ids=TOKENS), block_size=8)
    assert small[1].parent_hash == large[1].parent_hash
    assert small[1].block_hashes[-1] == large[1].block_hashes[-1]
    assert [len(chunk.block_hashes) for chunk in (*small, *large)] == [4, 4, 1, 1]


def test_hashes_of_the_engine_are_told_as_they_are() -> None:
    hashes = [bytes([number]) * 32 for number in range(4)]
    first, second = names_of(Prefix(token_ids=NO_TOKENS, block_hashes=hashes, hash_block_size=BLOCK), block_size=2)
    assert (first.block_hashes, second.block_hashes) == (tuple(hashes[:2]), tuple(hashes[2:]))
    assert (first.parent_hash, second.parent_hash) == (None, (hashes[1],))
    assert (first.block_size, first.token_ids) == (BLOCK, b"")
    assert second.parent_name == first.name


def test_with_tokens_blocks_between_the_engines_hashes_have_hashes_too() -> None:
    hashes = [bytes([number]) * 32 for number in range(2)]
    first, second = names_of(Prefix(token_ids=TOKENS, block_hashes=hashes, hash_block_size=CHUNK))
    assert first.block_hashes == (blake3(token_bytes(0, 4)).digest(), hashes[0])
    assert second.block_hashes == (blake3(hashes[0] + token_bytes(8, 12)).digest(), hashes[1])
    assert (second.block_size, second.token_ids) == (BLOCK, token_bytes(8, 16))


def test_blocks_that_do_not_fit_count_as_one_of_the_whole_chunk() -> None:
    first, _ = names_of(Prefix(token_ids=TOKENS), block_size=3)
    assert (first.block_size, first.num_blocks) == (CHUNK, 1)


def test_numbers_are_the_low_64_bits() -> None:
    whole: Any = names_of(Prefix(token_ids=TOKENS))[0].block_hashes
    assert names_of(Prefix(token_ids=TOKENS), as_ints=True)[0].block_hashes == b"".join(each[-8:] for each in whole)


def test_a_chunk_without_tokens_is_wanted_again_with_tokens() -> None:
    names = Names(1 << 20)
    namer = Namer(names, Topics("{model}", "pod"), as_ints=True)
    hashes = [b"h" * 32]
    prefix = Prefix(token_ids=NO_TOKENS, block_hashes=hashes, hash_block_size=CHUNK)
    key = ChunkKey(b"key")
    prompt = Prompt(
        prefix=prefix, namespace=NAMESPACE, model_name="m", tenant="", world_size=1, block_size=4, chunk_size=CHUNK
    )
    namer.name(prompt, 0, key, None, [key])
    assert not namer.wants(key, has_tokens=False)
    assert namer.wants(key, has_tokens=True)
