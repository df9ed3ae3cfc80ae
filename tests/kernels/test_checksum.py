"""kvsum64 as NumPy computes it: the table of results, pieces that add up, and damage that it finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from tests.kernels.checksum_vectors import VECTORS, Vector


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_numpy_computes_the_results_of_the_table(vector: Vector) -> None:
    assert kvsum64(vector.data(), vector.offset_bytes) == vector.checksum


def test_pieces_of_a_chunk_add_up_to_its_checksum() -> None:
    vector = next(vector for vector in VECTORS if vector.size_bytes == 262_157)
    data = vector.data()
    cuts = [0, 8, 64, 72, 4096, 131_072, data.size]
    parts = [kvsum64(data[begin:end], begin) for begin, end in itertools.pairwise(cuts)]
    assert sum(reversed(parts)) % 2**64 == vector.checksum


def test_a_piece_that_begins_inside_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        kvsum64(np.zeros(8, np.uint8), 4)


def damaged(data: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a chunk with one damage at a random place."""
    data = data.copy()
    pages, lines, words, halves = (data.reshape(-1, size) for size in (4096, 64, 8, 4))
    match kind:
        case "bit":
            data[rng.integers(data.size)] ^= 1 << rng.integers(8)
        case "byte":
            data[rng.integers(data.size)] ^= rng.integers(1, 256)
        case "zeroed line":
            lines[rng.integers(len(lines))] = 0
        case "zeroed page":
            pages[rng.integers(len(pages))] = 0
        case "page of another chunk":
            pages[rng.integers(len(pages))] = rng.integers(0, 256, 4096, dtype=np.uint8)
        case "torn":
            at = rng.integers(1, len(lines)) * 64
            data[at:] = rng.integers(0, 256, data.size - at, dtype=np.uint8)
        case "shifted":
            data[:] = np.roll(data, int(rng.integers(1, data.size)))
        case _:
            rows = {"swapped pages": pages, "swapped lines": lines, "swapped words": words, "swapped halves": halves}[
                kind
            ]
            one, other = rng.choice(len(rows), 2, replace=False)
            rows[[one, other]] = rows[[other, one]]
    return data


DAMAGES = (
    *("bit", "byte", "zeroed line", "zeroed page", "page of another chunk", "torn", "shifted"),
    *("swapped pages", "swapped lines", "swapped words", "swapped halves"),
)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("contents", ["random", "bf16", "ones", "zeros"])
def test_damage_gives_another_checksum(contents: str, kind: str) -> None:
    data = Vector(contents, 0, 32_768, 0).data()
    rng = np.random.default_rng(3)
    checksum = kvsum64(data)
    for _ in range(100):
        other = damaged(data, kind, rng)
        assert (kvsum64(other) == checksum) == bool((other == data).all())
