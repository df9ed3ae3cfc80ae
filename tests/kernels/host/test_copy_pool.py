"""The copy pool: a done transfer touches no memory, a stop is quick, and no transfer waits behind a long one."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.errors import TransferCancelled
from kernels.host.copy_pool import CopyPool, HostTransfer, Piece

SECONDS = 30  # a limit for what happens at once


class Gate:
    """A piece that says when it runs, then waits until the gate is open."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(2 * SECONDS)


@pytest.fixture
def pool() -> Iterator[CopyPool]:
    pool = CopyPool("test", 2)
    yield pool
    pool.close()


def endless(done: list[int]) -> Iterator[Piece]:
    return (functools.partial(done.append, index) for index in itertools.count())


def test_every_piece_is_carried_out_once(pool: CopyPool) -> None:
    done: list[int] = []
    pool.start(functools.partial(done.append, index) for index in range(1000)).future.result(SECONDS)
    assert sorted(done) == list(range(1000))


def test_a_transfer_of_nothing_is_done(pool: CopyPool) -> None:
    pool.start(iter(())).future.result(SECONDS)


def test_the_future_waits_for_the_last_piece(pool: CopyPool) -> None:
    gate = Gate()
    transfer = pool.start(iter([gate, lambda: None]))
    assert gate.reached.wait(SECONDS)
    pool.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not transfer.future.done()
    gate.open.set()
    transfer.future.result(SECONDS)


def test_what_comes_later_waits_for_every_other_piece_then_the_checksums_are_made(pool: CopyPool) -> None:
    gate, order = Gate(), list[str]()
    copies = [functools.partial(order.append, "copied")] * 20
    later = [functools.partial(order.append, "read")] * 3

    def sum_up() -> NDArray[np.uint64]:
        return np.array([len(order)], np.uint64)

    transfer = pool.start(iter([gate, *copies]), later, sum_up)
    assert gate.reached.wait(SECONDS)
    pool.start(iter([lambda: None] * 99)).future.result(SECONDS)  # the other thread has found no more pieces
    assert order == ["copied"] * 20
    gate.open.set()
    transfer.future.result(SECONDS)
    assert order == ["copied"] * 20 + ["read"] * 3
    assert transfer.checksums.tolist() == [23]


def test_of_many_threads_that_end_together_one_carries_out_what_comes_later() -> None:
    pool, done = CopyPool("test", 8), list[int]()
    for number in range(200):
        pool.start(iter([lambda: None] * 8), (functools.partial(done.append, number),)).future.result(SECONDS)
    assert done == list(range(200))
    pool.close()


def test_a_transfer_that_failed_does_nothing_later_and_has_no_checksums(pool: CopyPool) -> None:
    later = list[int]()
    failed = pool.start(iter([lambda: 1 // 0]), (functools.partial(later.append, 1),), lambda: np.ones(1, np.uint64))
    assert failed.future.exception(SECONDS) is not None
    assert later == []
    assert failed.checksums.tolist() == []


def test_a_cancelled_transfer_is_done_only_when_no_thread_is_at_it(pool: CopyPool) -> None:
    gate, later = Gate(), list[int]()
    transfer = pool.start(itertools.chain([gate], endless(later)))
    assert gate.reached.wait(SECONDS)
    transfer.cancel()
    pool.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not transfer.future.done()
    gate.open.set()
    with pytest.raises(TransferCancelled):
        transfer.future.result(SECONDS)
    carried_out = len(later)
    pool.start(iter([lambda: None] * 99)).future.result(SECONDS)
    assert len(later) == carried_out


def test_cancelling_twice_or_when_done_does_nothing(pool: CopyPool) -> None:
    transfer = pool.start(iter([lambda: None]))
    transfer.future.result(SECONDS)
    transfer.cancel()
    transfer.cancel()
    assert transfer.future.result() is None


def test_a_failing_piece_stops_the_others_and_is_what_the_future_raises(pool: CopyPool) -> None:
    gate, later = Gate(), list[int]()

    def fail() -> None:
        assert gate.reached.wait(SECONDS)
        raise OSError("broken")

    transfer = pool.start(itertools.chain([gate, fail], endless(later)))
    assert gate.reached.wait(SECONDS)
    pool.start(iter([lambda: None] * 9)).future.result(SECONDS)  # the other thread has failed before it gets here
    assert not transfer.future.done()
    transfer.cancel()
    gate.open.set()
    with pytest.raises(OSError, match="broken"):
        transfer.future.result(SECONDS)
    assert later == []


def test_pieces_that_cannot_be_made_fail_the_transfer(pool: CopyPool) -> None:
    def pieces() -> Iterator[Piece]:
        yield lambda: None
        raise IndexError("no such block")

    with pytest.raises(IndexError):
        pool.start(pieces()).future.result(SECONDS)


def test_checksums_that_cannot_be_made_fail_the_transfer(pool: CopyPool) -> None:
    def sum_up() -> NDArray[np.uint64]:
        raise OverflowError

    with pytest.raises(OverflowError):
        pool.start(iter([lambda: None]), sum_up=sum_up).future.result(SECONDS)


async def test_a_cancelled_await_leaves_the_future_to_the_threads(pool: CopyPool) -> None:
    gate = Gate()
    transfer = pool.start(iter([gate]))
    waiting = asyncio.ensure_future(asyncio.wrap_future(transfer.future))
    await asyncio.to_thread(gate.reached.wait, SECONDS)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)  # what wrap_future does about it, it does in a callback
    assert not transfer.future.done()
    gate.open.set()
    await asyncio.wrap_future(transfer.future)


def test_a_short_transfer_does_not_wait_for_a_long_one() -> None:
    pool = CopyPool("test", 1)
    long = pool.start(endless([]))
    pool.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not long.future.done()
    pool.close()


def test_closing_cancels_and_waits() -> None:
    pool, gate = CopyPool("test", 2), Gate()
    running: list[HostTransfer] = [pool.start(itertools.chain([gate], endless([]))), pool.start(endless([]))]
    assert gate.reached.wait(SECONDS)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("test-")]
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(TransferCancelled):
        running[1].future.result(SECONDS)
    assert closing.is_alive()
    gate.open.set()
    closing.join(SECONDS)
    assert all(isinstance(transfer.future.exception(0), TransferCancelled) for transfer in running)
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError):
        pool.start(iter(()))
    pool.close()


def times_of(transfer: HostTransfer, begin: float) -> dict[str, float]:
    """Return the duration of each phase, after a check that they follow each other since ``begin``."""
    life_seconds = time.monotonic() - begin
    end = 0.0
    for phase in transfer.phases:
        assert phase.start_seconds == pytest.approx(end)
        end += phase.duration_seconds
    assert end <= life_seconds
    return {phase.name: phase.duration_seconds for phase in transfer.phases}


def test_a_transfer_waits_until_a_thread_takes_its_first_piece_then_copies() -> None:
    pool, gates = CopyPool("test", 1), [Gate(), Gate()]
    first = pool.start(iter([gates[0]]))
    assert gates[0].reached.wait(SECONDS)
    begin = time.monotonic()
    second = pool.start(iter([gates[1], lambda: None]))
    assert second.phases == ()
    started_at = time.monotonic()
    waited_seconds = time.monotonic() - started_at
    gates[0].open.set()
    assert gates[1].reached.wait(SECONDS)
    reached_at = time.monotonic()
    copied_seconds = time.monotonic() - reached_at
    gates[1].open.set()
    for transfer in (first, second):
        transfer.future.result(SECONDS)
    times = times_of(second, begin)
    assert list(times) == ["wait", "copy"]
    assert times["wait"] >= waited_seconds
    assert times["copy"] >= copied_seconds
    pool.close()


def test_a_transfer_that_is_cancelled_in_the_queue_has_only_waited() -> None:
    pool, gate = CopyPool("test", 1), Gate()
    pool.start(iter([gate]))
    begin = time.monotonic()
    transfer = pool.start(endless([]))
    transfer.cancel()
    gate.open.set()
    assert isinstance(transfer.future.exception(SECONDS), TransferCancelled)
    assert list(times_of(transfer, begin)) == ["wait"]
    pool.close()


def test_a_transfer_that_stops_in_the_middle_has_copied(pool: CopyPool) -> None:
    gate, begin = Gate(), time.monotonic()
    cancelled = pool.start(itertools.chain([gate], endless([])))
    assert gate.reached.wait(SECONDS)
    cancelled.cancel()
    gate.open.set()
    failed = pool.start(iter([lambda: 1 // 0]))
    for transfer in (cancelled, failed):
        assert transfer.future.exception(SECONDS) is not None
        assert list(times_of(transfer, begin)) == ["wait", "copy"]


def test_a_transfer_of_nothing_has_only_waited(pool: CopyPool) -> None:
    begin = time.monotonic()
    transfer = pool.start(iter(()))
    transfer.future.result(SECONDS)
    assert list(times_of(transfer, begin)) == ["wait"]


def test_a_thread_yields_its_core_when_it_has_run_for_a_while_and_not_before() -> None:
    yields: list[int] = []
    done: list[int] = []

    def runs_for_a_millisecond() -> None:
        end = time.thread_time() + 1e-3
        while time.thread_time() < end:
            pass
        done.append(1)

    pool = CopyPool("test", 1, lambda: yields.append(len(done)))
    pool.start(iter([lambda: None] * 20)).future.result(SECONDS)
    assert len(yields) <= 1
    yields.clear()
    pool.start(iter([runs_for_a_millisecond] * 10)).future.result(SECONDS)
    pool.close()
    assert yields[:10] == list(range(1, 11))
