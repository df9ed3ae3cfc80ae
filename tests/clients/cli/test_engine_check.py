"""The declaration of an engine is compared with its own arrays; each difference names the plane and the dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvdepot import DepotError
from kvdepot.cli.engine_check.declared import declared_problems
from kvdepot.cli.engine_check.factory import engine_of
from kvdepot.cli.engine_check.kv import blocks_for, compare, expected_memory, fill_with_noise, kv_of, put, usable_tokens
from kvdepot.cli.engine_check.rank import Wrong, ranks_of
from tests.fakes import engines_under_test as engines


def changed(**fields: Any) -> Any:
    """Return the right engine with other fields."""
    return replace(engines.right(), **fields)


def problems(factory: Callable[[], Any]) -> list[str]:
    return [problem for rank in ranks_of(factory()) for problem in declared_problems(rank)]


@pytest.mark.parametrize("factory", [engines.right, engines.two_ranks])
def test_right_engine_has_no_problem_and_keeps_its_bytes(factory: Callable[[], Any]) -> None:
    for rank in ranks_of(factory()):
        fill_with_noise(rank)
        before = [each.copy() for each in rank.memory]
        assert list(declared_problems(rank)) == []
        compare(rank, before)


@pytest.mark.parametrize(
    ("factory", "first"),
    [
        (
            engines.wrong_stride_order,
            "groups[0], layer 0, K: token_stride_bytes is declared as 10, and in the engine's array it is 30",
        ),
        (
            engines.wrong_block_count,
            "groups[0], layer 0, K: num_blocks is declared as 15, and the engine's array has 16",
        ),
        (engines.wrong_head_size, "groups[0], layer 0, K: head_bytes is declared as 8, and the engine's array has 10"),
        (
            engines.beyond_the_region,
            "groups[0], layer 1, V: it is declared to end at byte 8768 of regions[0], which has 7744 bytes",
        ),
        (
            engines.elsewhere,
            "groups[0], layer 0, K: it is declared at byte 64 of regions[1], and the engine's array is at byte 32 of "
            "regions[1]",
        ),
        (
            engines.array_outside,
            "groups[0], layer 1, K: it is declared at byte 3904 of regions[0], and the engine's array is in no region: "
            "make it with SharedBuffer.create and its view",
        ),
        (
            engines.swapped,
            "groups[0], layer 0, K: the engine's array is where groups[0], layer 0, V is declared: are they swapped?",
        ),
        (
            engines.overlapping,
            "groups[0], layer 1, K: it shares bytes with groups[0], layer 0, V, and planes of a group must not overlap",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_mistake_in_the_declaration_is_named(factory: Callable[[], Any], first: str) -> None:
    assert problems(factory)[0] == first


@pytest.mark.parametrize(
    ("factory", "match"),
    [
        (engines.nonsense, "the factory returned a str, and not an EngineUnderTest"),
        (list, "the factory returned an empty list"),
        (engines.too_few_layers, r"planes\[0\] is a list of 1, and groups\[0\] has 2 layers"),
        (
            lambda: replace(engines.right(), planes=[]),
            r"planes is a list of 0, and a list with the layers of each of 1",
        ),
        (lambda: changed(planes=[[1, 2]]), r"planes\[0\]\[0\] is a int, and a layer of groups\[0\]"),
        (lambda: changed(planes=[[(1, 2)] * 2]), "layer 0, K: neither a NumPy array nor a torch"),
        (
            lambda: changed(planes=[[(np.zeros((2, 3)),) * 2] * 2]),
            r"layer 0, K: its array has the shape \(2, 3\), not \[num_blocks, block_size, num_heads, head_size\]",
        ),
        (lambda: changed(groups=[]), "groups is empty"),
        (lambda: changed(regions=()), "regions: is empty, and groups"),
        (lambda: changed(groups=["x"]), r"groups\[0\]: is 'x', not a KvGroup"),
        (engines.no_memory, "regions"),
    ],
)
def test_what_is_no_engine_is_named(factory: Callable[[], Any], match: str) -> None:
    with pytest.raises((Wrong, DepotError), match=match):
        ranks_of(factory())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nonsense", "the factory returned a str, and not an EngineUnderTest"),
        ("raises", rf"the factory raised ValueError: the weights are missing \({engines.__file__}, line \d+\)"),
        ("missing", f"the module {engines.__name__} has no missing"),
        ("no_function", f"{engines.__name__}:no_function is a int, and not a function"),
    ],
)
def test_factory_that_makes_no_engine_is_named(name: str, problem: str) -> None:
    with pytest.raises(Wrong, match=problem):
        engine_of(f"{engines.__name__}:{name}")


def test_byte_that_was_written_elsewhere_is_named() -> None:
    (rank,) = ranks_of(engines.right())
    fill_with_noise(rank)
    before = [each.copy() for each in rank.memory]
    rank.memory[0][3] ^= 1
    with pytest.raises(Wrong, match=r"1 bytes are wrong, the first is byte 3 of regions\[0\], where no block is"):
        compare(rank, before)
    rank.memory[0][3] ^= 1
    rank.planes[0][3].array[7, 2, 1, 4] ^= 1
    with pytest.raises(Wrong, match=r"the first is groups\[0\], layer 1, V, block 7, token 2, head 1, byte 4"):
        compare(rank, before)


def test_expected_memory_is_what_the_engine_would_have_written() -> None:
    for rank in ranks_of(engines.two_ranks()):
        num_tokens = usable_tokens([rank])
        tables, kv = blocks_for(rank, num_tokens, seed=1).store, kv_of(rank, num_tokens, seed=2)
        fill_with_noise(rank)
        expected = expected_memory(rank, tables, kv, num_tokens, 0)
        put(rank, tables, kv)
        compare(rank, expected)


def test_two_sets_of_blocks_have_none_in_common() -> None:
    for rank in ranks_of(engines.two_ranks()):
        blocks = blocks_for(rank, usable_tokens([rank]), seed=1)
        for store, retrieve in zip(blocks.store, blocks.retrieve, strict=True):
            assert len(store) == len(retrieve) > 0
            assert not set(store) & set(retrieve)
        in_pool = [set(blocks.store[group]) | set(blocks.retrieve[group]) for group in (0, 1)]
        assert not in_pool[0] & in_pool[1]
