"""The live feed of a real server: it has a session's events, and a slow reader learns how many it lost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
from google.protobuf import json_format

from kvdepot import AsyncDepotClient, KvShape, allocation_record
from kvdepot.layout import layouts
from service.server import Server
from telemetry.events import SessionEnded

GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)


async def test_of_a_session_its_calls_and_its_blocks_are_seen(server: Server, client: AsyncDepotClient) -> None:
    assert server.bus is not None
    num_subscribers = len(server.bus._delivery.subscribers)
    feed = client.watch_events(instance_id="pod-1", session_id="chat")
    async with aclosing(feed), await client.attach(instance_id="pod-1", model_name="m", groups=[GROUP]) as attachment:
        first = asyncio.ensure_future(anext(feed))
        async with asyncio.timeout(10):
            while len(server.bus._delivery.subscribers) == num_subscribers:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.01)
        records = [
            allocation_record(session_id, block_ids=[number], token_ids=np.arange(16))
            for number, session_id in enumerate(["other", "chat", "other"])
        ]
        await client.report_block_allocation("pod-1", "m", 16, records)
        await attachment.lookup("other", range(16))
        await attachment.lookup("chat", range(16))
        async with asyncio.timeout(10):
            seen = [(await first).event] + [(await anext(feed)).event for _ in range(3)]
    assert [event.type for event in seen] == ["SessionStarted", "BlocksAllocated", "LookupStarted", "LookupFinished"]
    assert [event.session_id for event in seen] == ["chat", "", "chat", "chat"]
    (record,) = json_format.MessageToDict(seen[1].attributes)["records"]
    assert (record["session_id"], record["num_block_ids"]) == ("chat", 1)


async def test_a_slow_reader_learns_how_many_events_it_lost(server: Server, client: AsyncDepotClient) -> None:
    """Nothing is read while far more is published than the feed and the connection hold."""
    assert server.bus is not None
    num_subscribers = len(server.bus._delivery.subscribers)
    num_published = 20_000
    feed = client.watch_events(event_types=["SessionEnded"])
    async with aclosing(feed):
        first = asyncio.ensure_future(anext(feed))
        async with asyncio.timeout(10):
            while len(server.bus._delivery.subscribers) == num_subscribers:  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.01)
        for number in range(num_published):
            event = SessionEnded(
                instance_id="i" * 200,
                session_id=str(number),
                model_name="m",
                reason="idle",
                duration_seconds=1.0,
                num_operations=0,
            )
            server.bus.publish(event)
            if number % 100 == 99:
                async with asyncio.timeout(10):
                    while server.bus.stats().depth:  # noqa: ASYNC110 - no event says so
                        await asyncio.sleep(0.001)
        expected, num_lost = 0, 0
        message = await first
        async with asyncio.timeout(30):
            while True:
                num_lost += message.num_lost_events
                expected += message.num_lost_events
                assert message.event.session_id == str(expected)
                expected += 1
                if expected == num_published:
                    break
                message = await anext(feed)
    assert server.bus.stats().num_dropped_by_type == {}
    assert num_lost > 0
