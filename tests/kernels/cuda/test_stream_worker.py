"""Stream workers: their order, their steps in flight, their ends. A test makes every step."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.copies import ChunkCopy
from kernels.errors import DeviceFailed, RegionError, TransferCancelled
from tests.kernels.cuda.depot import LAYOUT, SECONDS, STEPS_AHEAD, Attached, CudaDepot
from tests.kernels.reference import Engine


def test_a_short_transfer_alternates_with_a_long_one(attached: Attached) -> None:
    long, short = attached.store(20), attached.store(1)
    attached.advance("store", 8)
    short.future.result(SECONDS)
    assert not long.future.done()


def test_a_long_store_does_not_delay_a_retrieve(attached: Attached) -> None:
    store, retrieve = attached.store(20), attached.retrieve(3)
    attached.advance("store", STEPS_AHEAD)  # as much as there may be
    attached.advance("retrieve", 6)
    retrieve.future.result(SECONDS)
    assert not store.future.done()


def test_no_more_steps_than_allowed_are_on_the_streams(attached: Attached) -> None:
    attached.store(20)
    for _ in range(STEPS_AHEAD):
        attached.advance("store")
    assert attached.fake.calls.count("gather") == STEPS_AHEAD
    assert attached.fake.calls.count("synchronize") == 0
    attached.advance("store")
    assert attached.fake.calls.count("gather") == STEPS_AHEAD
    assert attached.fake.calls.count("synchronize") == 1


def test_the_next_kernel_may_run_before_the_copy_is_done() -> None:
    for seed in range(50):
        depot = CudaDepot(seed=seed, staging_slots=2)
        engine = Engine(LAYOUT)
        buffer = depot.attach(engine)
        transfer = buffer.store(depot.random_copies(engine, 2))
        while not transfer.future.done():
            depot.workers["store"].advance()
        work = [name for name in depot.fake.streams.done if name in ("gather", "copy_to_host")]
        buffer.close()
        engine.close()
        if work[:2] == ["gather", "gather"]:
            return
    pytest.fail("it never does")


def test_a_request_uploads_once_and_allocates_nothing(attached: Attached) -> None:
    attached.depot.backend.register(0, len(attached.depot.l1))
    attached.fake.calls.clear()
    transfer = attached.store(20)
    while not transfer.future.done():
        attached.advance("store")
    assert attached.fake.calls.count("copy_to_device") == 1
    work = {"copy_to_device", "copy_to_host", "gather"}
    assert set(attached.fake.calls) == work | {"record", "wait", "synchronize", "seconds_between"}


def test_a_wait_for_an_event_delays_no_other(attached: Attached) -> None:
    event = attached.fake.export_event()
    waiting, other = attached.store(1, event), attached.store(1)
    attached.advance("store", 9)
    other.future.result(SECONDS)
    assert not waiting.future.done()
    attached.fake.happen(event)
    attached.advance("store", 2)
    waiting.future.result(SECONDS)


def test_waiting_for_an_event_is_asking_ever_more_rarely(attached: Attached) -> None:
    attached.store(1, attached.fake.export_event())
    worker = attached.depot.workers["store"].worker
    pauses = [worker.advance() for _ in range(9)]
    assert pauses == sorted(pauses)  # type: ignore[type-var]
    assert pauses[0] == 50e-6
    assert pauses[-1] == 1e-3
    attached.store(1, attached.fake.export_event())
    assert worker.advance() == 50e-6


def test_a_worker_with_nothing_to_do_sleeps(attached: Attached) -> None:
    assert attached.depot.workers["store"].worker.advance() is None


def test_an_event_that_does_not_exist_fails_its_request_alone(attached: Attached) -> None:
    transfer, other = attached.retrieve(1, bytes(64)), attached.retrieve(1)
    attached.advance("retrieve", 4)
    with pytest.raises(DeviceFailed, match="ready_event"):
        transfer.future.result(SECONDS)
    other.future.result(SECONDS)
    attached.buffer.check_size()


def test_what_waits_for_a_dead_engine_is_cancelled_at_once(attached: Attached) -> None:
    transfer = attached.store(1, attached.fake.export_event())
    attached.advance("store")
    transfer.cancel()
    attached.advance("store")
    assert isinstance(transfer.future.exception(0), TransferCancelled)
    assert "gather" not in attached.fake.calls


def test_a_cancelled_transfer_is_done_when_the_streams_have_passed_it(attached: Attached) -> None:
    transfer = attached.store(20)
    attached.advance("store", 2)
    transfer.cancel()
    transfer.cancel()
    assert not transfer.future.done()
    attached.advance("store", 3)
    assert isinstance(transfer.future.exception(0), TransferCancelled)
    assert attached.fake.calls.count("gather") == 2
    assert attached.fake.streams.num_issued == 0


def test_what_stopped_a_transfer_first_is_what_its_future_raises(attached: Attached) -> None:
    transfer = attached.store(9)
    attached.advance("store")
    transfer.cancel()
    attached.fake.fail_call = 1
    attached.advance("store")
    assert isinstance(transfer.future.exception(0), TransferCancelled)


def test_a_future_cannot_be_cancelled_from_outside(attached: Attached) -> None:
    transfer = attached.store(1)
    assert not transfer.future.cancel()
    attached.advance("store", 2)
    transfer.future.result(SECONDS)


def test_a_failure_ends_both_directions_of_its_attachment(attached: Attached) -> None:
    store, retrieve = attached.store(3), attached.retrieve(3)
    attached.advance("retrieve")
    attached.fake.fail_call = 1
    attached.advance("store")
    attached.advance("retrieve", 2)
    for transfer in (store, retrieve, attached.store(1), attached.retrieve(1)):
        with pytest.raises(DeviceFailed, match="was made to fail"):
            transfer.future.result(SECONDS)
    with pytest.raises(RegionError, match="was made to fail"):
        attached.buffer.check_size()


def test_what_starts_after_the_end_is_cancelled(attached: Attached) -> None:
    attached.buffer.close()
    with pytest.raises(TransferCancelled):
        attached.store(1).future.result(SECONDS)


def test_a_transfer_of_nothing_is_done(attached: Attached) -> None:
    transfer = attached.buffer.store([])
    attached.advance("store")
    transfer.future.result(SECONDS)


def test_copies_that_do_not_fit_are_refused_at_once(attached: Attached) -> None:
    (copy,) = attached.depot.random_copies(attached.engine, 1)
    buffer = attached.buffer
    too_far = ChunkCopy(l1_offset_bytes=len(attached.depot.l1), block_ids=copy.block_ids)
    no_block = ChunkCopy(l1_offset_bytes=0, block_ids=(np.full(3, 144),))
    too_many = ChunkCopy(l1_offset_bytes=0, block_ids=(np.arange(4),))
    for wrong in (too_far, no_block, too_many):
        with pytest.raises(ValueError):
            buffer.store([copy, wrong])
    with pytest.raises(ValueError, match="64 bytes"):
        buffer.store([copy], b"short")
    assert attached.fake.calls == []
