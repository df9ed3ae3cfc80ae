"""Keys: equal prefixes meet, and nothing else does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kernels.geometry import Group, Plane, PlaneKind
from service.l1 import keys as keys_module
from service.l1.keys import CHUNK_FORMAT, ChunkKey, Prefix, RankIdentity, chunk_keys, groups_of

CHUNK_SIZE = 4


def group(*, num_heads: int = 2, dtype: str = "bfloat16", block_size: int = 2, num_blocks: int = 8) -> Group:
    return Group(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=num_heads,
        head_bytes=8,
        dtype=dtype,
        block_stride_bytes=num_heads * 8 * block_size,
        token_stride_bytes=num_heads * 8,
        head_stride_bytes=8,
        planes=tuple(Plane(layer=0, kind=kind, region=0, offset_bytes=0) for kind in (PlaneKind.K, PlaneKind.V)),
    )


def tokens(*token_ids: int, salt: str = "", adapter: str = "") -> Prefix:
    return Prefix(token_ids=np.array(token_ids, dtype=np.uint32), cache_salt=salt, adapter=adapter)


def hashes(*block_hashes: bytes, hash_block_size: int = 2) -> Prefix:
    return Prefix(token_ids=np.empty(0, np.uint32), block_hashes=block_hashes, hash_block_size=hash_block_size)


def keys(
    prefix: Prefix,
    *,
    model: str = "m",
    world_size: int = 1,
    rank: int = 0,
    groups: tuple[Group, ...] = (),
    tenant: str = "",
    **more: Any,
) -> list[ChunkKey]:
    identity = RankIdentity.of(model, world_size, rank, groups or (group(),), CHUNK_SIZE, tenant, **more)
    return list(chunk_keys(identity.namespace(prefix), prefix, CHUNK_SIZE))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_keys_are_equal_exactly_as_far_as_the_whole_chunks_are(a: list[int], b: list[int]) -> None:
    keys_a, keys_b = keys(tokens(*a)), keys(tokens(*b))
    assert len(keys_a) == len(a) // CHUNK_SIZE
    for i, (key_a, key_b) in enumerate(zip(keys_a, keys_b, strict=False)):
        assert (key_a == key_b) == (a[: (i + 1) * CHUNK_SIZE] == b[: (i + 1) * CHUNK_SIZE])


def test_equal_tokens_after_another_prefix_are_another_chunk() -> None:
    assert keys(tokens(1, 2, 3, 4, 9, 9, 9, 9))[1] != keys(tokens(5, 6, 7, 8, 9, 9, 9, 9))[1]


def test_a_key_is_blake3_over_its_parent_and_its_little_endian_tokens() -> None:
    prefix = tokens(1, 2, 3, 4, 2**32 - 1, 6, 7, 8)
    namespace = RankIdentity.of("m", 1, 0, (group(),), CHUNK_SIZE).namespace(prefix)
    first = blake3(namespace + prefix.token_ids[:4].astype("<u4").tobytes()).digest()
    second = blake3(first + prefix.token_ids[4:].astype("<u4").tobytes()).digest()
    assert keys(prefix) == [first, second]


def test_all_that_makes_kv_differ_makes_keys_differ() -> None:
    prefix = tokens(1, 2, 3, 4)
    different = [
        keys(prefix),
        keys(prefix, model="other"),
        keys(prefix, model_revision="other"),
        keys(prefix, model="m2"),
        keys(prefix, model_revision="2"),  # not the same as the model's name with a 2 behind it
        keys(prefix, cache_epoch=1),
        keys(prefix, cache_epoch=2),
        keys(prefix, tenant="t"),
        keys(prefix, world_size=2),
        keys(prefix, world_size=2, rank=1),
        keys(tokens(1, 2, 3, 4, salt="s")),
        keys(tokens(1, 2, 3, 4, adapter="s")),
        keys(prefix, groups=(group(num_heads=3),)),
        keys(prefix, groups=(group(dtype="float16"),)),
        keys(prefix, groups=(group(), group())),
        keys(prefix, groups=(replace(group(), holds_state=True), group())),
        keys(prefix, groups=(group(), replace(group(), holds_state=True))),
        keys(prefix, groups=(replace(group(), holds_state=True),) * 2),
        keys(hashes(b"1" * 32, b"2" * 32)),
        keys(hashes(b"1" * 32, b"2" * 32), block_hash_seed="sha256 seed=0"),
        keys(hashes(b"1" * 32, b"2" * 32), block_hash_seed="sha256 seed=1"),
        keys(hashes(b"1" * 32, b"2" * 32), model_revision="other"),
        keys(hashes(b"1" * 32, b"2" * 32), cache_epoch=1),
    ]
    assert len({tuple(each) for each in different}) == len(different)


def test_seed_of_block_hashes_makes_no_difference_to_token_ids() -> None:
    prefix = tokens(1, 2, 3, 4)
    assert keys(prefix, block_hash_seed="sha256 seed=0") == keys(prefix)


def test_another_format_of_chunks_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(tokens(1, 2, 3, 4))
    monkeypatch.setattr(keys_module, "CHUNK_FORMAT", CHUNK_FORMAT + 1)
    assert keys(tokens(1, 2, 3, 4)) != before


def test_equal_beginnings_of_chunks_of_another_size_are_other_chunks() -> None:
    prefix = tokens(1, 2, 3, 4)
    short, long = (RankIdentity.of("m", 1, 0, (group(),), chunk_size).namespace(prefix) for chunk_size in (2, 4))
    assert short != long


def test_groups_can_be_read_from_a_geometry() -> None:
    latent = replace(
        group(num_heads=1, dtype="float8_e4m3fn"),
        planes=(Plane(layer=3, kind=PlaneKind.LATENT, region=1, offset_bytes=64),),
    )
    states = replace(latent, holds_state=True)
    for groups in ((), (group(),), (group(num_heads=5), latent), (group(), states), (states, group(), states)):
        for tenant in ("", "red"):
            geometry = RankIdentity.of("m", 1, 0, groups, CHUNK_SIZE, tenant).geometry
            read = groups_of(geometry)
            assert RankIdentity.of("m", 1, 0, read, CHUNK_SIZE, tenant).geometry == geometry
            assert [each.holds_state for each in read] == [each.holds_state for each in groups]


@given(st.binary(max_size=60), st.integers(0, 60))
def test_geometry_of_other_bytes_is_groups_or_a_value_error(noise: bytes, end: int) -> None:
    geometry = RankIdentity.of("m", 1, 0, (group(), group()), CHUNK_SIZE).geometry
    for each in (noise, geometry[:end], geometry[:end] + noise):
        with suppress(ValueError):
            groups_of(each)


def test_neighbouring_fields_do_not_run_into_each_other() -> None:
    assert keys(tokens(1, 2, 3, 4, salt="ab", adapter="c")) != keys(tokens(1, 2, 3, 4, salt="a", adapter="bc"))


def test_another_layout_of_the_same_model_has_the_same_keys() -> None:
    prefix = tokens(1, 2, 3, 4)
    assert keys(prefix) == keys(prefix, groups=(group(block_size=4, num_blocks=99),))


def test_with_block_hashes_a_chunk_is_named_by_its_last_block() -> None:
    a = keys(hashes(b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32, b"e" * 32))
    assert len(a) == 2
    assert a == keys(hashes(b"x" * 32, b"b" * 32, b"y" * 32, b"d" * 32))
    assert a[0] != keys(hashes(b"a" * 32, b"z" * 32))[0]


def test_equal_hashes_of_blocks_of_another_size_are_other_chunks() -> None:
    assert keys(hashes(b"a" * 32, b"b" * 32)) != keys(hashes(b"b" * 32, hash_block_size=4))
