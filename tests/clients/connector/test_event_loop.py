"""Tasks that nothing awaits."""

from __future__ import annotations

import asyncio
import gc

from kvdepot.connector.event_loop import BackgroundTasks


async def test_tasks_live_until_they_are_cancelled_though_nothing_else_refers_to_them() -> None:
    tasks = BackgroundTasks()
    ended: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    for number in range(3):
        tasks.start(wait(number))
    await asyncio.sleep(0)
    gc.collect()
    assert ended == []
    await tasks.cancel()
    assert sorted(ended) == [0, 1, 2]
    await tasks.cancel()  # of none
