"""The sample: by the key alone, and smaller where L1 holds more chunks."""

from __future__ import annotations

import pytest

from service.l1.ghosts.sampling import MAX_CHUNKS, Sampling, bits_of
from service.l1.keys import ChunkKey
from tests.service.l1.ghosts.traffic import key

KEYS = [key(number) for number in range(20_000)]


@pytest.mark.parametrize("shift", [0, 3, 8, 10])
def test_about_the_part_of_the_keys_that_the_weight_says_is_in_the_sample(shift: int) -> None:
    sampling = Sampling(0, min_shift=shift, salt=5)
    sampled = [each for each in KEYS if sampling.has(each)]
    expected = len(KEYS) / 2**shift
    assert sampling.weight == 2**shift
    assert abs(len(sampled) - expected) <= 5 * expected**0.5
    assert all(sampling.has_bits(bits_of(each)) == sampling.has(each) for each in KEYS)
    assert all(each[-1] & sampling.mask == sampling.match for each in sampled)


def test_a_smaller_sample_is_a_part_of_the_larger_one() -> None:
    sampling = Sampling(10_000 * 8_192, min_shift=0, salt=77)
    before = {each for each in KEYS if sampling.has(each)}
    for slot_bytes in (8_192, 1_024, 64, 8):
        assert sampling.fit(slot_bytes)
        after = {each for each in KEYS if sampling.has(each)}
        assert after < before
        assert 10_000 * 8_192 / sampling.weight <= MAX_CHUNKS * slot_bytes
        before = after


def test_larger_slots_do_not_change_the_sample() -> None:
    sampling = Sampling(1 << 30, min_shift=3)
    sampling.fit(4_096)
    weight = sampling.weight
    assert not sampling.fit(1 << 20)
    assert sampling.weight == weight


@pytest.mark.parametrize("short", [b"a", b"ab"])
def test_any_key_has_bits(short: bytes) -> None:
    sampling = Sampling(0, min_shift=3)
    assert sampling.has_bits(bits_of(ChunkKey(short))) == sampling.has(ChunkKey(short))
