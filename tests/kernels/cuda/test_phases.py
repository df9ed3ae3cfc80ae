"""The phases of a transfer: measured by the device, within the life of the transfer."""

from __future__ import annotations

import itertools
import time

import pytest

from kernels.cuda.transfer import CudaTransfer
from kernels.errors import DeviceFailed, TransferCancelled
from kernels.transfer import PhaseTime
from tests.kernels.cuda.depot import STEPS_AHEAD, Attached


class Watch:
    """Finishes a transfer that starts later than the watch, and checks that its phases lie in its life."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.begin = time.monotonic()

    def finish(self, transfer: CudaTransfer, direction: str) -> dict[str, PhaseTime]:
        while not transfer.future.done():
            self.attached.advance(direction)
        life_seconds = time.monotonic() - self.begin
        waiting, *work = transfer.phases
        assert (waiting.name, waiting.start_seconds) == ("wait", 0)
        assert all(phase.duration_seconds >= 0 for phase in transfer.phases)
        assert min((phase.start_seconds for phase in work), default=0) == (waiting.duration_seconds if work else 0)
        assert all(phase.start_seconds + phase.duration_seconds <= life_seconds for phase in transfer.phases)
        return {phase.name: phase for phase in transfer.phases}


def end_of(phase: PhaseTime) -> float:
    return phase.start_seconds + phase.duration_seconds


@pytest.fixture
def watch(attached: Attached) -> Watch:
    return Watch(attached)


def seconds_by_seconds(attached: Attached) -> None:
    """Make everything take a second on the device, so that its times differ from the host's."""
    ticks = itertools.count()
    attached.fake.streams.clock = lambda: float(next(ticks))


def test_a_store_is_a_pipeline_of_kernels_and_copies(watch: Watch) -> None:
    phases = watch.finish(watch.attached.store(20), "store")
    assert list(phases) == ["wait", "gather", "copy"]
    assert phases["gather"].start_seconds < phases["copy"].start_seconds < end_of(phases["gather"])
    assert end_of(phases["gather"]) < end_of(phases["copy"])


def test_a_retrieve_is_a_pipeline_of_copies_and_kernels(watch: Watch) -> None:
    phases = watch.finish(watch.attached.retrieve(20), "retrieve")
    assert list(phases) == ["wait", "copy", "scatter"]
    assert phases["copy"].start_seconds < phases["scatter"].start_seconds < end_of(phases["copy"])
    assert end_of(phases["copy"]) < end_of(phases["scatter"])


def test_a_transfer_of_one_step_copies_after_its_kernel(watch: Watch) -> None:
    phases = watch.finish(watch.attached.store(1), "store")
    assert end_of(phases["gather"]) <= phases["copy"].start_seconds


@pytest.mark.parametrize("steps_ahead", [1, 2, 9])
@pytest.mark.parametrize("num_chunks", [1, 2, 20])
def test_the_device_measures_how_long_work_took(num_chunks: int, steps_ahead: int) -> None:
    attached = Attached(steps_ahead=steps_ahead)
    seconds_by_seconds(attached)
    transfer = attached.store(num_chunks)
    while not transfer.future.done():
        attached.advance("store")
    _, *work = transfer.phases
    assert [phase.name for phase in work] == ["gather", "copy"]
    # A chunk has a kernel, a copy, and an event behind each. The events of several chunks lie further apart, because
    # the streams share the fake's only clock.
    for phase in work:
        seconds = phase.duration_seconds
        assert seconds == pytest.approx(2) if num_chunks == 1 else seconds >= 2 * num_chunks
    attached.close()


def test_a_wait_for_the_engine_is_its_own_phase(watch: Watch) -> None:
    watch.finish(watch.attached.store(1), "store")
    event = watch.attached.fake.export_event()
    transfer = watch.attached.store(1, event)
    begin = time.monotonic()
    watch.attached.advance("store", 5)
    waited_seconds = time.monotonic() - begin
    watch.attached.fake.happen(event)
    assert watch.finish(transfer, "store")["wait"].duration_seconds >= waited_seconds


def test_transfers_that_alternate_have_their_own_times(attached: Attached) -> None:
    running = []
    for num_chunks in (5, 2, 3):
        running.append((Watch(attached), attached.store(num_chunks)))
        attached.advance("store")  # the reference event happens only when the device is waited for
    for watch, transfer in running:
        assert list(watch.finish(transfer, "store")) == ["wait", "gather", "copy"]


def test_a_cancelled_transfer_tells_what_happened_so_far(watch: Watch) -> None:
    transfer = watch.attached.store(20)
    watch.attached.advance("store", 2)
    transfer.cancel()
    phases = watch.finish(transfer, "store")
    assert isinstance(transfer.future.exception(0), TransferCancelled)
    assert list(phases) == ["wait", "gather", "copy"]
    assert watch.attached.fake.calls.count("gather") == 2


def test_a_transfer_cancelled_while_it_waits_has_only_waited(watch: Watch) -> None:
    transfer = watch.attached.store(1, watch.attached.fake.export_event())
    begin = time.monotonic()
    watch.attached.advance("store", 3)
    waited_seconds = time.monotonic() - begin
    transfer.cancel()
    phases = watch.finish(transfer, "store")
    assert list(phases) == ["wait"]
    assert phases["wait"].duration_seconds >= waited_seconds


def test_a_transfer_of_nothing_has_only_waited(watch: Watch) -> None:
    transfer = watch.attached.buffer.store([])
    assert list(watch.finish(transfer, "store")) == ["wait"]


@pytest.mark.parametrize("fail_call", [1, 3, 5])
def test_what_failed_lasts_until_that_was_noticed(watch: Watch, fail_call: int) -> None:
    transfer = watch.attached.store(20)
    begin = time.monotonic()
    watch.attached.advance("store", STEPS_AHEAD + 1)  # the first of them is done
    watch.attached.fake.is_fatal = True
    watch.attached.fake.fail_call = fail_call
    lived_seconds = time.monotonic() - begin
    phases = watch.finish(transfer, "store")
    assert isinstance(transfer.future.exception(0), DeviceFailed)
    assert list(phases) == ["wait", "gather", "copy"]
    assert min(end_of(phases[name]) for name in ("gather", "copy")) >= lived_seconds


def test_a_device_that_dies_at_once_leaves_a_wait(watch: Watch) -> None:
    transfer = watch.attached.store(3)
    watch.attached.fake.streams.fail_at = 1
    assert list(watch.finish(transfer, "store")) == ["wait"]


@pytest.mark.parametrize("jump_seconds", [1_000.0, -1_000.0])
def test_a_device_clock_that_jumps_moves_no_phase_out_of_its_transfer(watch: Watch, jump_seconds: float) -> None:
    jumps = itertools.chain([0.0], itertools.repeat(jump_seconds))
    watch.attached.fake.streams.clock = lambda: time.monotonic() + next(jumps)
    watch.finish(watch.attached.store(2), "store")
