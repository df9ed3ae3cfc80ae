"""Slices: all long work together gets one slice in each pass of the loop, and state is whole between two slices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from service.depot.slices import SLICE_SECONDS, Slices


def steps(num: int, done: list[str], name: str = "", step_seconds: float = 0.0) -> Iterator[None]:
    for _ in range(num):
        time.sleep(step_seconds)
        done.append(name)
        yield


async def passes_of_the_loop(slices: Slices, until: asyncio.Future[None]) -> list[float]:
    """Return the time of each pass of the loop during long work."""
    seconds: list[float] = []
    while not until.done():
        begin = time.perf_counter()
        await asyncio.sleep(0)
        seconds.append(time.perf_counter() - begin)
    return seconds


async def test_short_work_is_done_at_once() -> None:
    done: list[str] = []
    assert Slices(clock=lambda: 0.0).run(steps(5, done)) is None
    assert len(done) == 5


async def test_long_work_goes_on_by_itself_in_the_order_of_its_steps() -> None:
    slices, done = Slices(), list[str]()
    ended = slices.run(steps(20, done, step_seconds=SLICE_SECONDS))
    assert ended is not None
    assert 1 <= len(done) < 20
    await ended
    assert len(done) == 20


async def test_all_long_work_together_has_one_slice_in_each_pass() -> None:
    slices, done = Slices(), list[str]()
    works = [slices.run(steps(10, done, str(number), SLICE_SECONDS)) for number in range(5)]
    futures = [work for work in works if work is not None]
    assert len(futures) == 5
    num_done = []
    while not all(future.done() for future in futures):
        before = len(done)
        await asyncio.sleep(0)
        num_done.append(len(done) - before)
    assert max(num_done) == 1
    assert set(done[1:6]) == set("01234")  # round robin


async def test_calls_get_slices_round_robin() -> None:
    slices, order = Slices(), list[str]()

    async def work(name: str) -> None:
        pace = slices.pace()
        for _ in range(3):
            await pace.next()
            order.append(name)

    await asyncio.gather(*(work(name) for name in "abc"))
    assert order == list("abcabcabc")


async def test_a_call_that_is_cancelled_while_it_waits_keeps_no_other_from_its_slices() -> None:
    slices = Slices()
    cancelled = asyncio.create_task(slices.next())
    other = asyncio.create_task(slices.next())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait_for(other, 5.0)
    assert cancelled.cancelled()


async def test_work_that_fails_ends_with_its_error_and_others_go_on() -> None:
    slices, done = Slices(), list[str]()

    def failing() -> Iterator[None]:
        time.sleep(SLICE_SECONDS)
        yield
        raise ValueError("broken")

    failed, other = slices.run(failing()), slices.run(steps(3, done))
    assert failed is not None and other is not None
    with pytest.raises(ValueError, match="broken"):
        await failed
    await other
    assert len(done) == 3
