"""The nearest identity that is stored is named, by what is different about the prompt at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.geometry import Group, Plane, PlaneKind
from service.depot.instances import Attachment
from service.depot.stored_identities import MAX_REMEMBERED, StoredIdentities, StoredIdentity, unknown_identity
from service.l1.chunk import NamespaceStats
from service.l1.keys import Namespace, Prefix, RankIdentity

GROUP = Group(
    num_layers=1,
    num_blocks=8,
    block_size=2,
    num_heads=2,
    head_bytes=8,
    dtype="bfloat16",
    block_stride_bytes=32,
    token_stride_bytes=16,
    head_stride_bytes=8,
    planes=tuple(Plane(layer=0, kind=kind, region=0, offset_bytes=0) for kind in (PlaneKind.K, PlaneKind.V)),
)
LATENT = replace(GROUP, planes=(Plane(layer=0, kind=PlaneKind.LATENT, region=0, offset_bytes=0),))
PROMPT = Prefix(token_ids=np.arange(4, dtype=np.uint32))
STORED = StoredIdentity(
    model_name="llama",
    world_size=1,
    rank=0,
    groups=(GROUP,),
    cache_salt="",
    adapter="",
    chunk_size=4,
    hash_block_size=0,
    model_revision="a",
)


def attached(model_name: str, block_hash_seed: str = "") -> Attachment:
    return Attachment(
        instance_id="i",
        model_name=model_name,
        world_size=1,
        rank=0,
        groups=(GROUP,),
        identity=RankIdentity.of(model_name, 1, 0, (GROUP,), 4),
        chunk_bytes=1,
        slot_bytes=1,
        buffer=None,
        transfer_backend="none",
        model_revision="a",
        block_hash_seed=block_hash_seed,
    )


def stored(*model_names: str) -> StoredIdentities:
    """Return the identities of stores by these models, the latest last. A model's namespace is its name."""
    identities = StoredIdentities()
    for model_name in model_names:
        identities.remember(Namespace(model_name.encode()), attached(model_name), PROMPT)
    return identities


def has_chunks(namespace: Namespace) -> bool:
    return True


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_name": "qwen"}, "model_name is 'llama', here 'qwen'"),
        ({"model_revision": "b"}, "model_revision is 'a', here 'b'"),
        ({"block_hash_seed": "sha256"}, "block_hash_seed is '', here 'sha256'"),
        ({"world_size": 2}, "world_size is 1, here 2"),
        ({"rank": 1}, "rank is 0, here 1"),
        ({"adapter": "lora"}, "adapter is '', here 'lora'"),
        ({"hash_block_size": 16}, "hash_block_size is 0, here 16"),
        ({"cache_salt": "secret"}, "cache_salt is another one"),
        ({"groups": (GROUP, GROUP)}, "the number of groups is 1, here 2"),
        ({"groups": (replace(GROUP, dtype="float16"),)}, "groups[0].dtype is 'bfloat16', here 'float16'"),
        ({"groups": (replace(GROUP, num_heads=4),)}, "groups[0].num_heads is 2, here 4"),
        ({"groups": (replace(GROUP, head_bytes=16),)}, "groups[0].head_bytes is 8, here 16"),
        ({"groups": (replace(GROUP, num_layers=2),)}, "groups[0].num_layers is 1, here 2"),
        ({"groups": (replace(GROUP, holds_state=True),)}, "groups[0].holds_state is False, here True"),
        ({"groups": (LATENT,)}, "the planes of groups[0] are K and V, here LATENT"),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], text: str) -> None:
    assert STORED.differences(replace(STORED, **change)) == [text]
    assert STORED.num_differences(replace(STORED, **change)) > 0


def test_what_does_not_count_for_the_identity_is_no_difference() -> None:
    other = replace(GROUP, num_blocks=9, block_size=4, block_stride_bytes=64, token_stride_bytes=8)
    assert STORED.differences(replace(STORED, groups=(other,))) == []
    assert STORED.num_differences(replace(STORED, groups=(other,))) == 0


def test_seed_of_block_hashes_is_no_difference_between_prompts_of_token_ids() -> None:
    with_seed, without = attached("llama", "sha256 seed=0"), attached("llama")
    assert StoredIdentity.of(with_seed, PROMPT) == StoredIdentity.of(without, PROMPT)
    hashed = Prefix(token_ids=PROMPT.token_ids[:0], block_hashes=(b"hash",), hash_block_size=4)
    assert StoredIdentity.of(with_seed, hashed) != StoredIdentity.of(without, hashed)


def test_chunks_that_the_depot_took_over_have_their_identities_named() -> None:
    stats = NamespaceStats(
        *(Namespace(b"n"), "llama", "", 0),
        geometry=RankIdentity.of("llama", 1, 0, (GROUP,), 4).geometry,
        chunk_size=4,
        model_revision="a",
    )
    adopted = StoredIdentities([stats])
    for change, text in (
        ({"model_revision": "b"}, "model_revision is 'a', here 'b'"),
        ({"groups": (LATENT,)}, "the planes of groups[0] are K and V, here LATENT"),
    ):
        assert adopted.nearest(replace(STORED, **change), has_chunks) == [text]
    assert adopted.nearest(STORED, has_chunks) == []
    assert len(StoredIdentities([replace(stats, geometry=b"\4\0\0\0\x09\0\0\0 of another format")])) == 0
    adopted.remember(Namespace(b"new"), attached("qwen"), PROMPT)
    assert len(adopted) == 2


def test_the_one_with_the_fewest_differences_is_nearest() -> None:
    here = replace(STORED, model_name="b", rank=1)
    assert stored("a", "b", "c").nearest(here, has_chunks) == ["rank is 0, here 1"]


def test_of_equally_near_ones_the_latest_store_counts() -> None:
    here = replace(STORED, model_name="here")
    assert stored("a", "b", "a").nearest(here, has_chunks) == ["model_name is 'a', here 'here'"]


def test_an_identity_without_chunks_is_not_named() -> None:
    here = replace(STORED, model_name="here")
    assert stored("a", "b").nearest(here, lambda namespace: namespace == b"a") == ["model_name is 'a', here 'here'"]
    assert stored("a", "b").nearest(here, lambda namespace: False) == []


def test_the_number_of_identities_is_bounded() -> None:
    identities = stored(*map(str, range(MAX_REMEMBERED + 5)))
    assert len(identities) == MAX_REMEMBERED
    assert identities.nearest(replace(STORED, model_name="0"), has_chunks) != []
    assert identities.nearest(replace(STORED, model_name="5"), has_chunks) == []


def test_a_long_text_names_the_first_differences() -> None:
    assert unknown_identity(list("abcdefg")).endswith("a; b; c; d; e; and 2 more")
