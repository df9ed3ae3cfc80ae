"""Prefixes and block tables are built from any container of ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvdepot import InvalidArgument, allocation_record, hash_prefix, token_prefix
from kvdepot.v1 import cache_pb2, observability_pb2

IDS = [0, 1, 128_255, (1 << 31) - 1]


def tensor(*args: Any, **kwargs: Any) -> Any:
    """Return `torch.tensor`; skip the test without torch."""
    return pytest.importorskip("torch").tensor(*args, **kwargs)


def uint32(ids: list[int]) -> Any:
    """Return a NumPy array of `uint32`."""
    return np.array(ids, np.uint32)


MAKERS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "int64 array": np.array,
    "uint32 array": uint32,
    "big-endian array": lambda ids: np.array(ids, ">u4"),
    "strided int64 array": lambda ids: np.array([ids, ids]).T[:, 0],
    "strided uint32 array": lambda ids: np.array([ids, ids], np.uint32).T[:, 0],
    "tensor": tensor,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_ids_of_any_kind_make_the_same_messages(make: Callable[[list[int]], Any]) -> None:
    ids = make(IDS)
    assert token_prefix(ids, cache_salt="salt", adapter="lora") == cache_pb2.Prefix(
        token_ids=IDS, cache_salt="salt", adapter="lora"
    )
    assert allocation_record(
        "session", block_ids=ids, token_ids=ids, reused_block_ids=ids
    ) == observability_pb2.BlockAllocationRecord(
        session_id="session", block_ids=IDS, token_ids=IDS, reused_block_ids=IDS
    )


@pytest.mark.parametrize("num_ids", [0, 31, 32, 4_095, 4_096, 131_072])
@pytest.mark.parametrize("of", [np.asarray, tensor], ids=["array", "tensor"])
def test_arrays_of_any_length_are_taken(of: Any, num_ids: int) -> None:
    ids = list(range(num_ids))
    assert token_prefix(of(ids, dtype=of(ids[:1]).dtype if ids else None)).token_ids == ids


@pytest.mark.parametrize(
    ("make", "ids"),
    [
        (list, [-1]),
        (list, [1 << 32]),
        (np.array, [-1]),
        (lambda ids: np.array(ids, np.uint64), [1 << 32]),
        (tensor, [-1]),
    ],
)
def test_id_that_is_no_uint32_is_refused(make: Callable[[list[int]], Any], ids: list[int]) -> None:
    with pytest.raises(ValueError, match="range"):
        token_prefix(make(ids))


@pytest.mark.parametrize(
    ("make", "ids"), [(list, [1.5]), (np.array, [1.5]), (tensor, [1.5]), (np.array, [True]), (list, ["1"])]
)
def test_id_that_is_no_integer_is_refused(make: Callable[[list[Any]], Any], ids: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match="integers"):
        token_prefix(make(ids))


def test_batch_of_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        token_prefix(np.zeros((2, 3), np.int64))


def test_hash_prefix_takes_any_iterable_of_hashes() -> None:
    hashes = (bytes([number]) * 32 for number in range(3))
    assert hash_prefix(hashes, 16, cache_salt="salt", adapter="lora") == cache_pb2.Prefix(
        block_hashes=[b"\0" * 32, b"\1" * 32, b"\2" * 32], hash_block_size=16, cache_salt="salt", adapter="lora"
    )
