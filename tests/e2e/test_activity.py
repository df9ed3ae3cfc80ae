"""GetActivity says what a depot did, second by second."""

from __future__ import annotations

from collections import Counter

import pytest

from kvdepot import AsyncDepotClient, DepotError
from kvdepot.v1 import cache_pb2, observability_pb2
from tests.e2e.conftest import Open
from tests.e2e.engines import prompt, refused
from tests.fakes.waiting import eventually

TOKENS = prompt(64)


async def counted(client: AsyncDepotClient, num_operations: int) -> observability_pb2.GetActivityResponse:
    """Return the activity once so many operations are in it."""
    answer = observability_pb2.GetActivityResponse()

    async def has_all() -> bool:
        answer.CopyFrom(await client.get_activity())
        return num_operations == sum(each.num_operations for bucket in answer.buckets for each in bucket.operations)

    await eventually(has_all)
    return answer


async def test_a_store_a_lookup_and_a_retrieve_are_counted(open_site: Open) -> None:
    site = await open_site()
    engine = await site.attach(world_size=2)
    await site.attach(instance_id=engine.attachment.instance_id, world_size=2, rank=1)
    kv = engine.kv(64, seed=1)
    await engine.store("s", TOKENS, kv)
    found = await engine.lookup("s", [*TOKENS, *prompt(16, seed=2)])
    assert found.matched_tokens == 0  # rank 1 has none

    answer = await counted(site.client, 2)
    sums = Counter[str]()
    for bucket in answer.buckets:
        sums.update({"stored": bucket.stored_tokens, "bytes": bucket.stored_bytes, "looked up": bucket.lookup_tokens})
        sums.update({"moved": bucket.store_transfer_bytes, "chunks": bucket.num_stored_chunks})
        sums.update(bucket.missed_tokens_by_reason)
    assert sums == {"stored": 64, "bytes": 12_288, "moved": 12_288, "chunks": 4, "looked up": 80, "rank missing": 80}
    operations = {each.kind: each for bucket in answer.buckets for each in bucket.operations}
    assert set(operations) == {cache_pb2.OPERATION_KIND_LOOKUP, cache_pb2.OPERATION_KIND_STORE}
    assert all(0 < each.p50_seconds <= each.p99_seconds < 30 for each in operations.values())
    assert answer.bucket_duration.seconds == 1
    (session,) = answer.busiest_sessions
    assert (session.instance_id, session.session_id) == (engine.attachment.instance_id, "s")
    assert (session.num_operations, session.lookup_tokens, session.num_bytes) == (2, 80, 12_288)


async def test_the_state_is_sampled_every_second(open_site: Open) -> None:
    site = await open_site()
    await site.attach(world_size=3)

    async def is_sampled() -> bool:
        buckets = (await site.client.get_activity()).buckets
        return bool(buckets) and buckets[-1].gauges.num_missing_ranks == 2

    await eventually(is_sampled)
    gauges = (await site.client.get_activity()).buckets[-1].gauges
    assert gauges.l1_capacity_bytes == 16 << 20
    assert (gauges.num_instances, gauges.num_attached_ranks) == (1, 1)


async def test_a_poller_gets_only_what_is_new(open_site: Open) -> None:
    site = await open_site()

    async def has_two() -> bool:
        return len((await site.client.get_activity()).buckets) >= 2

    await eventually(has_two)
    first, *others = (await site.client.get_activity()).buckets
    after = (await site.client.get_activity(after=first.start_time)).buckets
    assert [bucket.start_time for bucket in after][: len(others)] == [bucket.start_time for bucket in others]
    tens = await site.client.get_activity(resolution=observability_pb2.ACTIVITY_RESOLUTION_TEN_SECONDS)
    assert tens.bucket_duration.seconds == 10


@pytest.mark.parametrize("flag", ["disable_activity", "disable_observability"])
async def test_without_a_history_it_says_so(open_site: Open, flag: str) -> None:
    site = await open_site(**{flag: True})
    with refused("FAILED_PRECONDITION", "OBSERVABILITY_DISABLED"):
        await site.client.get_activity()
    with pytest.raises(DepotError, match="--disable-activity"):
        await site.client.get_activity()
