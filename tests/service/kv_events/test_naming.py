"""The hashes of blocks: those of the engine, or chains that other processes compute alike."""

from __future__ import annotations

import msgspec
import numpy as np

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


def names_of(
    prefix: Prefix, *, block_size: int = BLOCK, as_ints: bool = False, shared: frozenset[ChunkKey] = frozenset()
) -> list[NamedChunk]:
    names = Names(1 << 20)
    topics = Topics("kv@{pod}@{model}", "pod")
    namer = Namer(names, topics, as_ints=as_ints, is_shared=lambda key: key in shared)
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
    assert names.external == shared
    return list(names.all())


def hashes_of(chunk: NamedChunk) -> list[bytes]:
    hashes: list[bytes] = msgspec.msgpack.decode(chunk.block_hashes)
    return hashes


def parent_of(chunk: NamedChunk) -> bytes | None:
    return msgspec.msgpack.decode(chunk.parent_hash, type=bytes) if chunk.parent_hash is not None else None


def tokens_of(chunk: NamedChunk) -> list[int]:
    tokens: list[int] = msgspec.msgpack.decode(chunk.token_ids)
    return tokens


def test_chunks_of_tokens_end_with_their_keys() -> None:
    first, second = names_of(Prefix(token_ids=TOKENS))
    keys = list(chunk_keys(NAMESPACE, Prefix(token_ids=TOKENS), CHUNK))
    assert [hashes_of(each)[-1] for each in (first, second)] == keys
    assert (parent_of(first), parent_of(second)) == (None, keys[0])
    assert (first.parent_name, second.parent_name) == (b"", first.name)
    assert tokens_of(second) == TOKENS[8:16].tolist()
    assert (first.topic, first.block_size, first.num_blocks) == (b"kv@pod@m", BLOCK, 2)


def test_a_chunk_that_was_loaded_from_a_shared_tier_before_it_has_a_name_is_known_to_be_there() -> None:
    prefix = Prefix(token_ids=TOKENS)
    _, second = chunk_keys(NAMESPACE, prefix, CHUNK)
    assert len(names_of(prefix, shared=frozenset({second}))) == 2


def test_each_block_of_a_chunk_has_a_hash_of_its_own_in_both_forms() -> None:
    prefix = Prefix(token_ids=TOKENS)
    for as_ints in (False, True):
        chunks = names_of(prefix, block_size=1, as_ints=as_ints)
        hashes = [each for chunk in chunks for each in hashes_of(chunk)]
        assert len(set(hashes)) == len(hashes) == len(TOKENS)
        again = names_of(Prefix(token_ids=TOKENS), block_size=1, as_ints=as_ints)
        assert [each for chunk in again for each in hashes_of(chunk)] == hashes


def test_chunks_stored_in_other_blocks_continue_each_other() -> None:
    small, large = names_of(Prefix(token_ids=TOKENS), block_size=2), names_of(Prefix(token_ids=TOKENS), block_size=8)
    assert small[1].parent_hash == large[1].parent_hash
    assert hashes_of(small[1])[-1] == hashes_of(large[1])[-1]
    assert [len(hashes_of(chunk)) for chunk in (*small, *large)] == [4, 4, 1, 1]


def test_hashes_of_the_engine_are_told_as_they_are() -> None:
    hashes = [bytes([number]) * 32 for number in range(4)]
    first, second = names_of(Prefix(token_ids=NO_TOKENS, block_hashes=hashes, hash_block_size=BLOCK), block_size=2)
    assert (hashes_of(first), hashes_of(second)) == (hashes[:2], hashes[2:])
    assert (parent_of(first), parent_of(second)) == (None, hashes[1])
    assert (first.block_size, first.token_ids) == (BLOCK, b"")
    assert second.parent_name == first.name


def test_with_tokens_blocks_between_the_engines_hashes_have_hashes_too() -> None:
    hashes = [bytes([number]) * 32 for number in range(2)]
    first, second = names_of(Prefix(token_ids=TOKENS, block_hashes=hashes, hash_block_size=CHUNK))
    assert [hashes_of(first)[-1], hashes_of(second)[-1]] == hashes
    assert len({*hashes_of(first), *hashes_of(second)}) == 4
    assert (second.block_size, tokens_of(second)) == (BLOCK, TOKENS[8:16].tolist())


def test_blocks_that_do_not_fit_count_as_one_of_the_whole_chunk() -> None:
    first, _ = names_of(Prefix(token_ids=TOKENS), block_size=3)
    assert (first.block_size, first.num_blocks) == (CHUNK, 1)


def test_numbers_are_the_low_64_bits() -> None:
    for prefix in (
        Prefix(token_ids=TOKENS),
        Prefix(token_ids=NO_TOKENS, block_hashes=[b"%032d" % each for each in range(4)], hash_block_size=BLOCK),
    ):
        whole, low = names_of(prefix)[1], names_of(prefix, as_ints=True)[1]
        numbers = [int.from_bytes(each[-8:], "big") for each in hashes_of(whole)]
        assert msgspec.msgpack.decode(low.block_hashes) == numbers
        parent = parent_of(whole)
        assert parent is not None and low.parent_hash is not None
        assert msgspec.msgpack.decode(low.parent_hash) == int.from_bytes(parent[-8:], "big")


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
