"""Writes that are verified: what a store gets, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from kernels.checksum import kvsum64
from service.tiers.io_worker.messages import Message, WriteEnd, WritePart
from service.tiers.io_worker.verified import VerifiedStore
from service.tiers.record import OwnerTag
from service.tiers.store import Capabilities, Part, Place, StoreError

CHUNK_BYTES = 4_096
L1 = memoryview(bytearray(range(256)) * (4 * CHUNK_BYTES // 256))

WriteFrom = Callable[[Iterable[Part]], Iterator[tuple[int, StoreError | None]]]


class OnlyWrites:
    """A store that writes as a test says."""

    capabilities = Capabilities()

    def __init__(self, write_from: WriteFrom) -> None:
        self.write_from = write_from


def part(number: int, *, is_corrupt: bool = False) -> WritePart:
    begin = number * CHUNK_BYTES
    return WritePart(
        place=Place(bytes([number]) * 32),
        key=bytes([number]) * 32,
        owner=OwnerTag(b"tenant__", b"model___", b"salt____"),
        absent_tokens=(),
        offset_bytes=begin,
        slot_bytes=CHUNK_BYTES,
        chunk_bytes=CHUNK_BYTES,
        checksum=kvsum64(L1[begin : begin + CHUNK_BYTES]) + is_corrupt,
        store_time_ns=1,
        generation=0,
    )


def verified(write_from: WriteFrom, checksum: Callable[[memoryview], int] = kvsum64) -> VerifiedStore:
    return VerifiedStore(OnlyWrites(write_from), L1, checksum)  # type: ignore[arg-type]  # it only writes


def replies_of(write_from: WriteFrom, *parts: WritePart) -> list[Message]:
    return list(verified(write_from).write(parts))


def ends_of(replies: Iterable[Message]) -> dict[int, str]:
    return {int(reply["part"]): str(reply["end"]) for reply in replies}


def test_a_store_gets_a_chunk_before_the_next_one_is_verified() -> None:
    steps: list[str] = []

    def checksum(data: memoryview) -> int:
        steps.append("verified")
        return kvsum64(data)

    def write_from(parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        for number, _ in enumerate(parts):
            steps.append("written")
            yield number, None

    replies = list(verified(write_from, checksum).write([part(number) for number in range(3)]))
    assert ends_of(replies) == dict.fromkeys(range(3), WriteEnd.OK)
    assert steps == ["verified", "written"] * 3


def test_a_chunk_with_wrong_bytes_does_not_reach_the_store() -> None:
    written: list[bytes] = []

    def write_from(parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        for number, each in enumerate(parts):
            written.append(each.place.name)
            yield number, None

    replies = replies_of(write_from, part(0), part(1, is_corrupt=True), part(2))
    assert ends_of(replies) == {0: WriteEnd.OK, 1: WriteEnd.CORRUPT, 2: WriteEnd.OK}
    assert written == [bytes([number]) * 32 for number in (0, 2)]


def test_wrong_bytes_are_reported_even_if_the_store_fails() -> None:
    def write_from(parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        list(parts)
        raise StoreError("it fails")
        yield

    reported = []
    with pytest.raises(StoreError, match="it fails"):
        for reply in verified(write_from).write([part(0), part(1, is_corrupt=True)]):
            reported.append(reply)  # noqa: PERF402 - what came before the error
    assert ends_of(reported) == {1: WriteEnd.CORRUPT}


@pytest.mark.parametrize("taken", [0, 1])
def test_a_store_that_leaves_parts_out_fails(taken: int) -> None:
    def write_from(parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        for number, _ in zip(range(taken), parts, strict=False):
            yield number, None

    with pytest.raises(StoreError, match="did not take all parts"):
        replies_of(write_from, part(0), part(1), part(2))


@pytest.mark.parametrize("number", [-1, 0, 2])
def test_a_store_that_answers_for_another_part_fails(number: int) -> None:
    def write_from(parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        list(parts)
        yield 0, None
        yield number, None

    with pytest.raises(StoreError, match="was not asked for any more"):
        replies_of(write_from, part(0), part(1))
