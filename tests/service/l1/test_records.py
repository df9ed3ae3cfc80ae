"""The tables: what was written is read again, and no damage makes another record of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.l1.format import CELL_BYTES, RECORD_BYTES
from service.l1.namespace_table import Facts, NamespaceTable
from service.l1.records import Record, RecordTable

MEMORY_ID = bytes(range(32))
LAST_USE_BYTES = 8

U64 = st.integers(0, 2**64 - 1)
ABSENT = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 60)), max_size=4).map(
    lambda runs: tuple(tokens for tokens, num_groups in runs for _ in range(num_groups))
)
RECORDS = st.builds(
    Record,
    key=st.binary(min_size=32, max_size=32),
    offset_bytes=U64,
    slot_bytes=U64,
    chunk_bytes=U64,
    checksum=st.none() | U64,
    namespace_sum=U64,
    cell=st.integers(0, 2**32 - 1),
    store_time_ns=U64,
    generation=U64,
    absent_tokens=ABSENT,
)


def record(**fields: object) -> Record:
    defaults = {
        "key": b"k" * 32,
        "offset_bytes": 8192,
        "slot_bytes": 4096,
        "chunk_bytes": 4000,
        "checksum": 1 << 63,
        "namespace_sum": 7,
        "cell": 3,
        "store_time_ns": 5,
        "generation": 1,
        "absent_tokens": (0, 256, 256),
    }
    return Record(**{**defaults, **fields})  # type: ignore[arg-type]


def reopened(memory: bytearray, memory_id: bytes = MEMORY_ID) -> list[tuple[int, Record | None, int]]:
    return list(RecordTable(memoryview(memory), memory_id).scan())


@given(RECORDS, U64)
def test_a_record_is_read_as_it_was_written(written: Record, last_use: int) -> None:
    memory = bytearray(4 * RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    assert table.take() == 0
    number = table.take()
    assert number == 1
    table.write(number, written, last_use)
    assert reopened(memory) == [(1, written, last_use)]


def test_each_bit_of_a_record_is_guarded_except_those_of_its_last_use() -> None:
    memory = bytearray(RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    number = table.take()
    assert number is not None
    table.write(number, record(), 9)
    for bit in range(8 * RECORD_BYTES):
        damaged = bytearray(memory)
        damaged[bit // 8] ^= 1 << bit % 8
        [(_, found, _)] = reopened(damaged)
        if bit < 8 * (RECORD_BYTES - LAST_USE_BYTES):
            assert found is None, f"bit {bit} is not guarded"
        else:
            assert found == record()


@given(st.integers(0, 2**32), st.integers(1, RECORD_BYTES))
def test_a_half_written_record_is_none(seed: int, num_bytes: int) -> None:
    memory = bytearray(RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    number = table.take()
    assert number is not None
    before = record(key=np.random.default_rng(seed).bytes(32))
    table.write(number, before, 9)
    old = bytes(memory)
    table.write(number, record(), 9)
    torn = bytes(memory[:num_bytes]) + old[num_bytes:]
    [(_, found, _)] = reopened(bytearray(torn))
    assert found in (None, record(), before)
    assert found is not None or torn not in (bytes(memory), old)


def test_a_record_of_another_memory_or_at_another_place_is_none() -> None:
    memory = bytearray(2 * RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    number = table.take()
    assert number is not None
    table.write(number, record(), 9)
    assert [found for _, found, _ in reopened(memory, bytes(32))] == [None]
    memory[RECORD_BYTES:] = memory[:RECORD_BYTES]
    assert [found for _, found, _ in reopened(memory)] == [record(), None]


def test_an_erased_record_is_free_and_gone() -> None:
    memory = bytearray(2 * RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    first, second = table.take(), table.take()
    assert first is not None and second is not None
    assert table.take() is None
    table.write(first, record(), 1)
    table.write(second, record(), 2)
    table.erase(first)
    assert [number for number, _, _ in reopened(memory)] == [second]
    assert table.take() == first


def test_a_table_that_was_scanned_hands_out_only_what_is_free() -> None:
    memory = bytearray(5 * RECORD_BYTES)
    table = RecordTable(memoryview(memory), MEMORY_ID)
    for number in [table.take() for _ in range(4)]:
        assert number is not None
        table.write(number, record(generation=number), 0)
    table.erase(1)
    after = RecordTable(memoryview(memory), MEMORY_ID)
    assert [number for number, _, _ in after.scan()] == [0, 2, 3]
    assert [after.take(), after.take(), after.take()] == [1, 4, None]


def test_absent_tokens_that_do_not_fit_a_record_are_refused() -> None:
    table = RecordTable(memoryview(bytearray(RECORD_BYTES)), MEMORY_ID)
    with pytest.raises(ValueError, match="absent tokens"):
        table.write(0, record(absent_tokens=(1, 2, 3, 4, 5)), 0)
    with pytest.raises(ValueError, match="absent tokens"):
        table.write(0, record(absent_tokens=(0,) * 256), 0)


def table_of_namespaces(num_cells: int = 8) -> tuple[bytearray, NamespaceTable]:
    memory = bytearray(num_cells * CELL_BYTES)
    return memory, NamespaceTable(memoryview(memory), MEMORY_ID)


def test_a_namespace_is_read_as_it_was_written_whatever_its_length() -> None:
    memory, table = table_of_namespaces()
    facts: list[Facts] = [{"model_name": "m", "rank": 1}, {"model_name": "x" * 600}, {"model_name": "é\n\0"}]
    entries = [table.write(each) for each in facts]
    after = NamespaceTable(memoryview(memory), MEMORY_ID)
    for entry, each in zip(entries, facts, strict=True):
        assert entry is not None
        assert after.read(*entry) == each


def test_a_namespace_without_space_is_refused_and_fits_after_another_left() -> None:
    _, table = table_of_namespaces(3)
    entry = table.write({"model_name": "x" * 500})
    assert entry is not None
    assert table.write({"model_name": "y" * 300}) is None
    table.erase(entry[0])
    assert table.write({"model_name": "y" * 300}) is not None


def test_each_bit_of_a_namespace_is_guarded() -> None:
    memory, table = table_of_namespaces(1)
    entry = table.write({"model_name": "m"})
    assert entry is not None
    used_bytes = len(bytes(memory).rstrip(b"\0"))
    for bit in range(8 * used_bytes):
        damaged = bytearray(memory)
        damaged[bit // 8] ^= 1 << bit % 8
        assert NamespaceTable(memoryview(damaged), MEMORY_ID).read(*entry) is None


def test_no_entry_is_read_outside_the_table() -> None:
    _, table = table_of_namespaces(2)
    assert table.read(2, 7) is None
    assert table.read(2**32 - 1, 7) is None
    assert table.read(1, 0) is None
