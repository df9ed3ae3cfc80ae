"""States of vLLM's layers with a real depot: they lie in one allocation with attention, and come back exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from kvdepot import AsyncDepotClient, hash_prefix
from kvdepot.connector.commands import GroupTable, LoadCommand, StoreCommand
from kvdepot.vllm.memory import share
from service.server import Server
from tests.clients.connector.workers import StartWorker, hashes, start_worker
from tests.clients.vllm.test_support import MambaSpec
from tests.fakes.vllm import BLOCK, FullAttentionSpec, Group, KvCacheConfig

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

__all__ = ["start_worker"]

NUM_BLOCKS, PAGE_BYTES, STATE_BYTES = 32, 512, 402  # a state is padded, and its bytes are no multiple of its tokens
STATES = [MambaSpec(block_size=BLOCK), MambaSpec(block_size=BLOCK)]
CONFIG = KvCacheConfig(
    NUM_BLOCKS,
    [
        Group(["mamba.0"], STATES[0]),
        Group(["mamba.1"], STATES[1]),
        Group(["attention"], FullAttentionSpec(block_size=BLOCK)),
    ],
)


def overlaid() -> dict[str, torch.Tensor]:
    """Return the views of three groups that overlay one allocation: a block belongs to one group at a time."""
    pages = torch.zeros(NUM_BLOCKS * PAGE_BYTES, dtype=torch.int8).view(NUM_BLOCKS, PAGE_BYTES)
    states = pages[:, None, None, :STATE_BYTES]
    attention = pages.view(torch.float32).view(NUM_BLOCKS, 2, BLOCK, PAGE_BYTES // 4 // 2 // BLOCK)
    return {"mamba.0": states, "mamba.1": states, "attention": attention}


def pages_of(caches: dict[str, torch.Tensor], block_ids: list[int], name: str) -> torch.Tensor:
    return torch.stack([caches[name][block_id] for block_id in block_ids]).clone()


async def test_states_and_kv_come_back_in_other_blocks(
    start_server: Any, tmp_path: Any, start_worker: StartWorker
) -> None:
    server = cast(Server, await start_server(listen=(f"unix:{tmp_path}/depot.sock",)))
    address = server.addresses[0]
    one = await start_worker(address, caches=overlaid(), kv_cache_config=CONFIG)
    two = await start_worker(address, caches=overlaid(), kv_cache_config=CONFIG)
    assert one.chunk_size == BLOCK
    generator = torch.Generator().manual_seed(1)
    for worker in (one, two):
        pages = worker.caches["attention"]
        pages.copy_(torch.rand(pages.shape, generator=generator))
    facts: dict[str, Any] = {"request_id": "request", "session_id": "session", "traceparent": ""}
    stored = (GroupTable(absent_blocks=2, block_ids=[9]), GroupTable(absent_blocks=2, block_ids=[3]))
    one.connector.store(
        [
            StoreCommand(
                transfer_id=1,
                chunk_hashes=hashes(3),
                chunk_size=BLOCK,
                cache_salt="",
                adapter="",
                start_token=0,
                tables=(*stored, GroupTable(absent_blocks=0, block_ids=[4, 20, 7])),
                **facts,
            )
        ]
    )
    assert not (await one.until_done(1)).failed
    async with AsyncDepotClient(address) as client:
        found = await client.lookup("engine-1", "session", hash_prefix(hashes(4), BLOCK))
        assert found.matched_tokens == 3 * BLOCK
        shorter = await client.lookup("engine-1", "other", hash_prefix(hashes(2), BLOCK))
        assert shorter.matched_tokens == 0
    kept = [block for block in range(NUM_BLOCKS) if block not in (5, 6, 8, 11, 2)]
    before = pages_of(two.caches, kept, "attention")
    padding = two.caches["attention"].view(torch.int8).reshape(NUM_BLOCKS, PAGE_BYTES)[5, STATE_BYTES + 2 :].clone()
    loaded = (GroupTable(absent_blocks=2, block_ids=[5]), GroupTable(absent_blocks=2, block_ids=[6]))
    two.connector.load(
        [
            LoadCommand(
                transfer_id=2,
                leases=(found.lease.lease_id,),
                num_tokens=3 * BLOCK,
                skip_tokens=0,
                may_be_partial=False,
                tables=(*loaded, GroupTable(absent_blocks=0, block_ids=[8, 11, 2])),
                **facts,
            )
        ]
    )
    assert await two.until_loaded() == ({"request"}, set())
    for name, there, here in (("mamba.0", [9], [5]), ("mamba.1", [3], [6]), ("attention", [4, 20, 7], [8, 11, 2])):
        assert torch.equal(pages_of(two.caches, here, name), pages_of(one.caches, there, name))
    assert torch.equal(pages_of(two.caches, kept, "attention"), before), "no other block is written"
    behind = two.caches["attention"].view(torch.int8).reshape(NUM_BLOCKS, PAGE_BYTES)[5, STATE_BYTES + 2 :]
    assert torch.equal(behind, padding), "what lies behind the padded state is not written"


def test_groups_of_states_are_declared_as_such() -> None:
    memory = share(overlaid(), CONFIG, "name")
    assert [group.holds_state for group in memory.groups] == [True, True, False]
    assert [group.block_stride_bytes for group in memory.groups] == 3 * [PAGE_BYTES]
    assert memory.groups[0].block_size * memory.groups[0].head_bytes == 404
    assert [source.engine_group for source in memory.sources] == [0, 1, 2]
    assert len(memory.regions) == 1
