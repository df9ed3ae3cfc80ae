"""Models with chunks of several sizes share L1: leased chunks of one keep no other out."""

from __future__ import annotations

from kvdepot import KvShape
from tests.e2e.conftest import Open
from tests.e2e.engines import Engine, prompt
from tests.fakes.paged import Group

WIDE = Group(
    "NL_X_TWO_NB_BS_NH_HS",
    KvShape(num_layers=16, num_blocks=64, block_size=4, num_heads=8, head_size=64, dtype="uint16"),
)
"""A chunk of 16 tokens has 512 KiB: sixteen of them in the buffer, and 32 in an L1 of 16 MiB."""

NARROW = Group(
    "NL_X_TWO_NB_BS_NH_HS",
    KvShape(num_layers=11, num_blocks=64, block_size=4, num_heads=8, head_size=64, dtype="uint16"),
)
NUM_TOKENS = 256


async def fill(engine: Engine) -> None:
    """Store two prompts, which take all of L1."""
    for seed in (1, 2):
        answer = await engine.store("writer", prompt(NUM_TOKENS, seed), engine.kv(NUM_TOKENS, seed))
        assert answer.stored_tokens == NUM_TOKENS


async def test_a_model_gets_slots_although_chunks_of_another_size_are_leased(open_site: Open) -> None:
    depot = await open_site(l1_size="16MiB")
    wide, narrow = await depot.attach(WIDE), await depot.attach(NARROW, model_name="narrow")
    await fill(wide)
    leases = [(await wide.lookup("reader", prompt(32, seed))).lease for seed in (1, 2)]
    kv = narrow.kv(NUM_TOKENS, seed=3)
    answer = await narrow.store("s", prompt(NUM_TOKENS, seed=3), kv)
    assert (answer.stored_tokens, answer.refused_tokens) == (NUM_TOKENS, 0)
    assert await narrow.holds("s", prompt(NUM_TOKENS, seed=3), kv) == NUM_TOKENS
    for seed, lease in zip((1, 2), leases, strict=True):
        await wide.retrieve_exactly("reader", lease, wide.kv(32, seed))
    depot.depot.index.check()


async def test_a_model_whose_chunks_are_larger_gets_slots_although_chunks_are_leased(open_site: Open) -> None:
    depot = await open_site(l1_size="16MiB")
    wide, narrow = await depot.attach(WIDE), await depot.attach(NARROW, model_name="narrow")
    for seed in (1, 2, 3):
        await narrow.store("writer", prompt(NUM_TOKENS, seed), narrow.kv(NUM_TOKENS, seed))
    lease = (await narrow.lookup("reader", prompt(32, seed=3))).lease
    kv = wide.kv(NUM_TOKENS, seed=4)
    answer = await wide.store("s", prompt(NUM_TOKENS, seed=4), kv)
    assert (answer.stored_tokens, answer.refused_tokens) == (NUM_TOKENS, 0)
    assert await wide.holds("s", prompt(NUM_TOKENS, seed=4), kv) == NUM_TOKENS
    await narrow.retrieve_exactly("reader", lease, narrow.kv(32, seed=3))
    depot.depot.index.check()
