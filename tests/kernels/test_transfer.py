"""Transfers: done means done, stopping is soon, nobody waits behind a long one."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from kernels import transfer as transfer_module
from kernels.errors import TransferCancelled
from kernels.transfer import CopyPool, Piece, Transfer

SECONDS = 30  # a limit for what happens at once


class Gate:
    """A piece that tells when it is at work, then waits to be let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(2 * SECONDS)


@pytest.fixture
def lane() -> Iterator[CopyPool]:
    lane = CopyPool("test", 2)
    yield lane
    lane.close()


def endless(done: list[int]) -> Iterator[Piece]:
    return ((lambda index=index: done.append(index)) for index in itertools.count())


def test_every_piece_is_carried_out_once(lane: CopyPool) -> None:
    done: list[int] = []
    lane.start((lambda index=index: done.append(index)) for index in range(1000)).future.result(SECONDS)
    assert sorted(done) == list(range(1000))


def test_a_transfer_of_nothing_is_done(lane: CopyPool) -> None:
    lane.start(iter(())).future.result(SECONDS)


def test_the_future_waits_for_the_last_piece(lane: CopyPool) -> None:
    gate = Gate()
    transfer = lane.start(iter([gate, lambda: None]))
    assert gate.reached.wait(SECONDS)
    lane.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not transfer.future.done()
    gate.open.set()
    transfer.future.result(SECONDS)


def test_a_cancelled_transfer_is_done_only_when_no_thread_is_at_it(lane: CopyPool) -> None:
    gate, later = Gate(), []
    transfer = lane.start(itertools.chain([gate], endless(later)))
    assert gate.reached.wait(SECONDS)
    transfer.cancel()
    lane.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not transfer.future.done()
    gate.open.set()
    with pytest.raises(TransferCancelled):
        transfer.future.result(SECONDS)
    carried_out = len(later)
    lane.start(iter([lambda: None] * 99)).future.result(SECONDS)
    assert len(later) == carried_out


def test_cancelling_twice_or_when_done_does_nothing(lane: CopyPool) -> None:
    transfer = lane.start(iter([lambda: None]))
    transfer.future.result(SECONDS)
    transfer.cancel()
    transfer.cancel()
    assert transfer.future.result() is None


def test_a_failing_piece_stops_the_others_and_is_what_the_future_raises(lane: CopyPool) -> None:
    gate, later = Gate(), []

    def fail() -> None:
        assert gate.reached.wait(SECONDS)
        raise OSError("broken")

    transfer = lane.start(itertools.chain([gate, fail], endless(later)))
    assert gate.reached.wait(SECONDS)
    lane.start(iter([lambda: None] * 9)).future.result(SECONDS)  # the other thread has failed before it gets here
    assert not transfer.future.done()
    transfer.cancel()
    gate.open.set()
    with pytest.raises(OSError, match="broken"):
        transfer.future.result(SECONDS)
    assert later == []


def test_pieces_that_cannot_be_made_fail_the_transfer(lane: CopyPool) -> None:
    def pieces() -> Iterator[Piece]:
        yield lambda: None
        raise IndexError("no such block")

    with pytest.raises(IndexError):
        lane.start(pieces()).future.result(SECONDS)


async def test_a_cancelled_await_leaves_the_future_to_the_threads(lane: CopyPool) -> None:
    gate = Gate()
    transfer = lane.start(iter([gate]))
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
    lane = CopyPool("test", 1)
    long = lane.start(endless([]))
    lane.start(iter([lambda: None] * 9)).future.result(SECONDS)
    assert not long.future.done()
    lane.close()


def test_closing_cancels_and_waits() -> None:
    lane, gate = CopyPool("test", 2), Gate()
    running: list[Transfer] = [lane.start(itertools.chain([gate], endless([]))), lane.start(endless([]))]
    assert gate.reached.wait(SECONDS)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("test-")]
    closing = threading.Thread(target=lane.close)
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
        lane.start(iter(()))
    lane.close()


def times_of(transfer: Transfer, begin: float) -> dict[str, float]:
    """How long each step took; one follows the other, and all lie between ``begin`` and now."""
    life_seconds = time.monotonic() - begin
    end = 0.0
    for step in transfer.steps:
        assert step.start_seconds == pytest.approx(end)
        end += step.duration_seconds
    assert end <= life_seconds
    return {step.name: step.duration_seconds for step in transfer.steps}


def test_a_transfer_waits_until_a_thread_takes_its_first_piece_then_copies() -> None:
    lane, gates = CopyPool("test", 1), [Gate(), Gate()]
    first = lane.start(iter([gates[0]]))
    assert gates[0].reached.wait(SECONDS)
    begin = time.monotonic()
    second = lane.start(iter([gates[1], lambda: None]))
    assert second.steps == ()
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
    lane.close()


def test_a_transfer_that_is_cancelled_before_its_turn_has_only_waited() -> None:
    lane, gate = CopyPool("test", 1), Gate()
    lane.start(iter([gate]))
    begin = time.monotonic()
    transfer = lane.start(endless([]))
    transfer.cancel()
    gate.open.set()
    assert isinstance(transfer.future.exception(SECONDS), TransferCancelled)
    assert list(times_of(transfer, begin)) == ["wait"]
    lane.close()


def test_a_transfer_that_stops_in_the_middle_has_copied(lane: CopyPool) -> None:
    gate, begin = Gate(), time.monotonic()
    cancelled = lane.start(itertools.chain([gate], endless([])))
    assert gate.reached.wait(SECONDS)
    cancelled.cancel()
    gate.open.set()
    failed = lane.start(iter([lambda: 1 // 0]))
    for transfer in (cancelled, failed):
        assert transfer.future.exception(SECONDS) is not None
        assert list(times_of(transfer, begin)) == ["wait", "copy"]


def test_a_transfer_of_nothing_has_only_waited(lane: CopyPool) -> None:
    begin = time.monotonic()
    transfer = lane.start(iter(()))
    transfer.future.result(SECONDS)
    assert list(times_of(transfer, begin)) == ["wait"]


def test_a_thread_yields_its_core_when_it_has_run_for_a_while_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    yields: list[int] = []
    monkeypatch.setattr(transfer_module, "_yield_core", lambda: yields.append(len(done)))
    done: list[int] = []

    def runs_for_a_millisecond() -> None:
        end = time.thread_time() + 1e-3
        while time.thread_time() < end:
            pass
        done.append(1)

    lane = CopyPool("test", 1)
    lane.start(iter([lambda: None] * 20)).future.result(SECONDS)
    assert len(yields) <= 1
    yields.clear()
    lane.start(iter([runs_for_a_millisecond] * 10)).future.result(SECONDS)
    lane.close()
    assert yields[:10] == list(range(1, 11))
