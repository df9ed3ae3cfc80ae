"""kvsum64 as NumPy computes it: the table of results, pieces that add up, and damage that it finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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
