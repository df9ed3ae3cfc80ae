"""What outlives a process has an identity that does: the depot's start, its epoch, and the seed of block hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from kvdepot import hash_prefix, token_prefix
from kvdepot.v1.cache_pb2 import MissReason, StoreInlineHeader, StoreInlineRequest
from service.load_settings import load
from tests.e2e.conftest import Open
from tests.e2e.engines import InlineStore, Site, prompt, refused, site
from tests.e2e.servers import running_server
from tests.e2e.throttle import Throttle

NUM_TOKENS = 64
TOKENS = prompt(NUM_TOKENS)
HASHES = hash_prefix([bytes([number]) * 32 for number in range(4)], 16)


@pytest.fixture
def l1_file() -> Iterator[str]:
    """A place for a depot's L1 that outlives it."""
    with TemporaryDirectory(dir="/dev/shm", prefix="kvdepot-test-") as folder:
        yield f"{folder}/l1"


async def test_attach_and_status_name_the_start_of_the_depot(open_site: Open) -> None:
    one, two = await open_site(), await open_site()
    first, again = (await one.attach()).attachment, (await one.attach()).attachment
    other = (await two.attach()).attachment
    assert first.depot_incarnation
    assert first.depot_incarnation == again.depot_incarnation != other.depot_incarnation
    status = await one.client.get_status()
    assert (status.depot_incarnation, status.num_adopted_chunks) == (first.depot_incarnation, 0)
    assert first.adopted_chunks == 0


async def test_attach_says_how_many_chunks_of_the_tenant_were_taken_over(depot: Site) -> None:
    depot.server.depots.num_adopted_chunks_by_tenant |= {"": 5, "red": 7}
    assert (await depot.attach()).attachment.adopted_chunks == 5
    assert (await depot.client.get_status()).num_adopted_chunks == 12


async def test_chunks_of_another_epoch_are_another_identity(open_site: Open) -> None:
    sites = [await open_site(cache_epoch=epoch) for epoch in (0, 1, 1)]
    engines = [await site.attach() for site in sites]
    for engine in engines:
        await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    old, new, same = ({chunk.key for chunk in site.depot.index.chunks()} for site in sites)
    assert not old & new
    assert new == same
    assert load({}).cache_epoch == 0


async def test_ranks_of_an_instance_name_one_revision_and_one_seed(depot: Site) -> None:
    facts: dict[str, Any] = {
        "instance_id": "tp",
        "world_size": 2,
        "model_revision": "1",
        "block_hash_seed": "sha256 seed=0",
    }
    await depot.attach(rank=0, **facts)
    for change in ({"model_revision": "2"}, {"block_hash_seed": ""}, {"model_name": "other"}):
        with refused("FAILED_PRECONDITION", "INSTANCE_MISMATCH"):
            await depot.attach(rank=1, **{**facts, **change})
    await depot.attach(rank=1, **facts)


async def test_instance_is_listed_and_explained_with_its_revision(depot: Site) -> None:
    old = await depot.attach(model_revision="old")
    await old.store("s", TOKENS, old.kv(NUM_TOKENS, 1))
    await depot.attach(instance_id="new", model_revision="new", block_hash_seed="sha256 seed=0")
    listed = {each.instance_id: each for each in (await depot.client.list_instances()).instances}
    assert (listed["new"].model_revision, listed["new"].block_hash_seed) == ("new", "sha256 seed=0")
    answer = await depot.client.explain_prefix(TOKENS, instance_id="new")
    assert (answer.model_revision, answer.block_hash_seed) == ("new", "sha256 seed=0")
    (other,) = answer.other_identities
    assert (other.model_name, other.model_revision, other.matched_tokens) == ("model", "old", NUM_TOKENS)


async def test_block_hashes_without_a_seed_are_refused_where_chunks_outlive_the_depot(
    open_site: Open, l1_file: str
) -> None:
    depot = await open_site(l1_file=l1_file)
    engine = await depot.attach()
    instance_id = engine.attachment.instance_id
    with refused("FAILED_PRECONDITION", "BLOCK_HASH_SEED_MISSING"):
        await engine.lookup("s", HASHES)
    with refused("FAILED_PRECONDITION", "BLOCK_HASH_SEED_MISSING"):
        await engine.store("s", HASHES, engine.kv(NUM_TOKENS, 1))
    with refused("FAILED_PRECONDITION", "BLOCK_HASH_SEED_MISSING"):
        store = InlineStore(depot.stub)
        header = StoreInlineHeader(instance_id=instance_id, session_id="s", prefix=HASHES)
        await store.send(StoreInlineRequest(header=header))
        await store.answer()
    with refused("FAILED_PRECONDITION", "BLOCK_HASH_SEED_MISSING"):
        await depot.client.explain_prefix(HASHES, instance_id=instance_id)
    assert depot.depot.index.num_resident == 0
    assert len(depot.depot.sessions) == 0


@pytest.mark.parametrize("seed", ["", "sha256 seed=0"])
async def test_token_ids_and_hashes_with_a_seed_are_served_where_chunks_outlive_the_depot(
    seed: str, open_site: Open, l1_file: str
) -> None:
    depot = await open_site(l1_file=l1_file)
    engine = await depot.attach(block_hash_seed=seed)
    for prefix in (token_prefix(TOKENS), *([HASHES] if seed else [])):
        kv = engine.kv(NUM_TOKENS, 1)
        assert (await engine.store("s", prefix, kv)).stored_tokens == NUM_TOKENS
        assert await engine.holds("s", prefix, kv) == NUM_TOKENS


@asynccontextmanager
async def started(l1_file: str, **flags: Any) -> AsyncIterator[Site]:
    """Run a depot that keeps its chunks, during the block."""
    async with (
        running_server({"chunk_size": 16, "l1_file": l1_file, **flags}) as server,
        site(server, throttle=Throttle()) as opened,
    ):
        yield opened


async def test_new_weights_miss_what_the_depot_before_has_left_and_old_ones_find_it(l1_file: str) -> None:
    async with started(l1_file) as depot:
        engine = await depot.attach(model_revision="1")
        await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
        first_start = engine.attachment.depot_incarnation
    async with started(l1_file) as depot:
        new, old = await depot.attach(model_revision="2"), await depot.attach(model_revision="1")
        assert new.attachment.depot_incarnation != first_start
        assert new.attachment.adopted_chunks == NUM_TOKENS // 16
        status = await depot.client.get_status()
        assert (status.depot_incarnation, status.num_adopted_chunks) == (old.attachment.depot_incarnation, 4)
        found = await new.lookup("s", TOKENS)
        assert MissReason.Name(found.miss.reason) == "MISS_REASON_UNKNOWN_IDENTITY"
        assert found.miss.detail.endswith("nearest that is stored, model_revision is '1', here '2'")
        assert await old.holds("s", TOKENS, old.kv(NUM_TOKENS, 1)) == NUM_TOKENS


async def test_hashes_of_another_seed_miss_what_the_depot_before_has_left(l1_file: str) -> None:
    async with started(l1_file) as depot:
        engine = await depot.attach(block_hash_seed="sha256 seed=0")
        await engine.store("s", HASHES, engine.kv(NUM_TOKENS, 1))
    async with started(l1_file) as depot:
        other = await depot.attach(block_hash_seed="sha256 seed=1")
        found = await other.lookup("s", HASHES)
        assert found.miss.detail.endswith("block_hash_seed is 'sha256 seed=0', here 'sha256 seed=1'")
        same = await depot.attach(block_hash_seed="sha256 seed=0")
        assert await same.holds("s", HASHES, same.kv(NUM_TOKENS, 1)) == NUM_TOKENS


async def test_attach_names_the_other_seeds_of_equal_chunks_and_engines(depot: Site) -> None:
    facts: dict[str, Any] = {"model_name": "llama", "model_revision": "1"}

    async def others(seed: str, **change: Any) -> tuple[str, ...]:
        engine = await depot.attach(block_hash_seed=seed, **{**facts, **change})
        found = engine.attachment.other_block_hash_seeds
        await engine.close()
        return found

    assert await others("of 16 tokens") == (), "nothing is stored"
    engine = await depot.attach(block_hash_seed="of 16 tokens", **facts)
    assert await others("of 32 tokens") == ("of 16 tokens",), "an engine is attached"
    await engine.store("s", HASHES, engine.kv(NUM_TOKENS, 1))
    await engine.close()
    assert await others("of 32 tokens") == ("of 16 tokens",), "chunks are left"
    assert await others("of 16 tokens") == await others("") == ()
    for change in ({"model_name": "qwen"}, {"model_revision": "2"}, {"world_size": 2}):
        assert await others("of 32 tokens", **change) == (), change
    await depot.client.clear_cache()
    assert await others("of 32 tokens") == (), "nothing is left"


async def test_attach_names_eight_other_seeds_at_most(depot: Site) -> None:
    for number in range(10):
        await depot.attach(block_hash_seed=f"seed {number}")
    last = await depot.attach(block_hash_seed="seed 5")
    assert last.attachment.other_block_hash_seeds == tuple(f"seed {number}" for number in (0, 1, 2, 3, 4, 6, 7, 8))


async def test_raised_epoch_forgets_what_the_depot_before_has_left(l1_file: str) -> None:
    async with started(l1_file) as depot:
        engine = await depot.attach()
        await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    async with started(l1_file, cache_epoch=1) as depot:
        engine = await depot.attach()
        assert engine.attachment.adopted_chunks == 0
        assert (await engine.lookup("s", TOKENS)).matched_tokens == 0
