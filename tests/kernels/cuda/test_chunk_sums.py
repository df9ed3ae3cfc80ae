"""Checksums of a transfer over streams: who gets one, what it costs, and whom it delays. A test makes every step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy
from kernels.cuda import buffer, chunk_sums
from kernels.cuda.chunk_sums import HostShare
from kernels.cuda.steps import chunk_bytes, plane_bytes
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import DeviceFailed, TransferCancelled
from kernels.geometry import Group
from kernels.plan import plan_groups
from tests.kernels.cuda.depot import LAYOUT, SECONDS, STEPS_AHEAD, Attached
from tests.kernels.cuda.test_steps import GROUPS
from tests.kernels.reference import AlignedEngine, Engine


@pytest.fixture
def aligned() -> Iterator[Attached]:
    """An engine whose blocks the kernels can sum."""
    attached = Attached(AlignedEngine(LAYOUT, alignment=16))
    yield attached
    attached.close()


def finish(attached: Attached, transfer: CudaTransfer, direction: str = "store") -> None:
    for _ in range(1_000):
        if transfer.future.done():
            attached.fake.streams.synchronize(attached.depot.workers[direction].name, "main")
            return
        attached.advance(direction)
    pytest.fail("the transfer does not end")


def start(attached: Attached, direction: str, copies: Sequence[ChunkCopy]) -> CudaTransfer:
    attached.fake.streams.synchronize("main", attached.depot.workers[direction].name)
    transfer: CudaTransfer = getattr(attached.buffer, direction)(copies)
    return transfer


def noted_slices(monkeypatch: pytest.MonkeyPatch) -> list[chunk_sums.ChunkSums]:
    """Return a list that will have whose slice was summed, each time."""
    noted = []
    add_slice = chunk_sums.ChunkSums.add_slice

    def note(sums: chunk_sums.ChunkSums) -> None:
        noted.append(sums)
        add_slice(sums)

    monkeypatch.setattr(chunk_sums.ChunkSums, "add_slice", note)
    return noted


def checksums_of(attached: Attached, transfer: CudaTransfer) -> list[int]:
    l1, size_bytes = memoryview(attached.depot.l1), attached.buffer.chunk_bytes
    return [kvsum64(l1[at:][:size_bytes]) for at in transfer.copies.l1_offsets.tolist()]


@pytest.mark.parametrize("name", ["attached", "aligned"])
def test_a_copy_has_a_checksum_if_it_asks_for_one(name: str, request: pytest.FixtureRequest) -> None:
    attached: Attached = request.getfixturevalue(name)
    copies = attached.depot.random_copies(attached.engine, 7)
    wanted = [True, False, False, True, True, False, True]
    copies = [replace(copy, with_checksum=wants) for copy, wants in zip(copies, wanted, strict=True)]
    for direction in ("store", "retrieve"):
        transfer = start(attached, direction, copies)
        finish(attached, transfer, direction)
        expected = [sum_ * wants for sum_, wants in zip(checksums_of(attached, transfer), wanted, strict=True)]
        assert transfer.checksums.tolist() == expected


def test_checksums_of_several_uploads_belong_to_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "MAX_UPLOAD_COPIES", 3)
    attached = Attached(AlignedEngine(LAYOUT, alignment=16), staging_bytes=5_000)
    copies = attached.depot.random_copies(attached.engine, 11, with_checksum=True)
    transfer = start(attached, "store", copies)
    finish(attached, transfer)
    assert attached.fake.calls.count("copy_to_device") == 4
    assert transfer.checksums.tolist() == checksums_of(attached, transfer)
    attached.close()


def test_a_damaged_byte_in_l1_changes_the_checksum_of_a_retrieve(aligned: Attached) -> None:
    copies = aligned.depot.random_copies(aligned.engine, 3, with_checksum=True)
    stored = start(aligned, "store", copies)
    finish(aligned, stored)
    aligned.depot.l1[copies[1].l1_offset_bytes + 77] ^= 4
    retrieved = start(aligned, "retrieve", copies)
    finish(aligned, retrieved, "retrieve")
    assert (retrieved.checksums == stored.checksums).tolist() == [True, False, True]


def test_a_checksum_is_of_the_bytes_that_came_over_the_link(aligned: Attached) -> None:
    copies = aligned.depot.random_copies(aligned.engine, 1, with_checksum=True)
    retrieved = start(aligned, "retrieve", copies)
    expected = checksums_of(aligned, retrieved)
    aligned.advance("retrieve", 2)  # the bytes have left L1
    aligned.depot.l1[copies[0].l1_offset_bytes] ^= 1
    assert retrieved.checksums.tolist() == expected


def test_checksums_cost_one_small_copy_an_upload_and_no_wait(aligned: Attached) -> None:
    aligned.depot.backend.register(0, len(aligned.depot.l1))
    finish(aligned, aligned.store(10))
    calls = []
    for with_checksum in (False, True):
        aligned.fake.calls.clear()
        finish(aligned, aligned.store(10, with_checksum=with_checksum))
        calls.append(sorted(aligned.fake.calls))
    assert calls[1] == sorted([*calls[0], "copy_to_host"])


def test_a_cancelled_transfer_has_no_checksums(aligned: Attached) -> None:
    transfer = aligned.store(3, with_checksum=True)
    aligned.advance("store", 4)
    transfer.cancel()
    finish(aligned, transfer)
    assert isinstance(transfer.future.exception(0), TransferCancelled)
    assert transfer.checksums.size == 0


def test_a_transfer_that_fails_has_no_checksums(aligned: Attached) -> None:
    transfer = aligned.store(3, with_checksum=True)
    aligned.advance("store", 4)
    aligned.fake.fail_call = 1
    finish(aligned, transfer)
    assert isinstance(transfer.future.exception(0), DeviceFailed)
    assert transfer.checksums.size == 0


def test_a_transfer_is_cancelled_while_the_host_sums_its_share(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_sums, "SLICE_BYTES", 64)
    transfer = attached.store(1, with_checksum=True)
    attached.advance("store", 5)
    assert attached.fake.streams.num_issued == 0
    assert not transfer.future.done()
    transfer.cancel()
    attached.advance("store")
    assert isinstance(transfer.future.exception(0), TransferCancelled)
    assert transfer.checksums.size == 0


def test_an_end_does_not_wait_for_the_hosts_share(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = Attached()
    monkeypatch.setattr(chunk_sums, "SLICE_BYTES", 8)
    transfer = attached.store(1, with_checksum=True)
    attached.advance("store", 5)
    attached.close()
    assert isinstance(transfer.future.exception(0), TransferCancelled)


def test_a_share_of_the_host_delays_others_by_a_slice(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sums, "SLICE_BYTES", 64)
    long = attached.store(20, with_checksum=True)
    while attached.fake.calls.count("gather") < 20 or attached.fake.streams.num_issued:
        attached.advance("store")
    slices = noted_slices(monkeypatch)
    short = attached.store(1, l1_offset_bytes=1 << 16)
    advances = 0
    while not short.future.done():
        attached.advance("store")
        advances += 1
    assert len(slices) == advances <= STEPS_AHEAD
    assert not long.future.done()
    finish(attached, long)
    short.future.result(SECONDS)
    assert long.checksums.tolist() == checksums_of(attached, long)


def test_shares_of_several_transfers_alternate(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sums, "SLICE_BYTES", 64)
    slices = noted_slices(monkeypatch)
    transfers = [attached.store(4, with_checksum=True) for _ in range(2)]
    for transfer in transfers:
        finish(attached, transfer)
    both_are_copied = slices[-30:]
    assert all(one is not other for one, other in itertools.pairwise(both_are_copied))


def test_a_chunk_that_the_kernels_sum_needs_no_byte_from_the_host(
    aligned: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: int) -> int:
        raise AssertionError("the host sums")

    transfer = aligned.store(2, with_checksum=True)
    monkeypatch.setattr(chunk_sums.ChunkSums, "add_slice", unexpected)
    finish(aligned, transfer)
    transfer.future.result(SECONDS)


def test_the_hosts_share_is_summed_by_what_the_backend_was_given() -> None:
    asked = []

    def checksum_part(l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int) -> int:
        asked.append((l1_offset_bytes - chunk_offset_bytes, size_bytes, chunk_offset_bytes))
        return 1

    attached = Attached(Engine(LAYOUT), checksum_part=checksum_part)
    (copy,) = attached.depot.random_copies(attached.engine, 1, with_checksum=True)
    transfer = start(attached, "store", [copy])
    finish(attached, transfer)
    assert asked == [(copy.l1_offset_bytes, attached.buffer.chunk_bytes, 0)]
    assert transfer.checksums.tolist() == [1]
    attached.close()


@given(GROUPS, st.data())
def test_the_hosts_share_is_what_no_kernel_sums(groups: list[Group], data: st.DataObject) -> None:
    plans = plan_groups(groups, 8)
    are_summed = [data.draw(st.booleans()) for _ in plans]
    num_blocks = [data.draw(st.integers(0, plan.blocks_per_chunk)) for plan in plans]
    by_host, by_kernels = (np.zeros(chunk_bytes(plans), dtype=np.int64) for _ in range(2))
    for plan, is_summed, count in zip(plans, are_summed, num_blocks, strict=True):
        for plane_end in plan.chunk_offsets.ravel() + plane_bytes(plan):
            by_kernels[plane_end - is_summed * count * plan.block_bytes : plane_end] = 1
    share = HostShare(plans, are_summed)
    for first, end in share.ranges(num_blocks):
        assert first < end
        by_host[first:end] += 1
    assert (by_host + by_kernels == 1).all()
    assert share.has([np.array([count]) for count in num_blocks]).tolist() == [bool(by_host.any())]
