"""The demo's decoder computes what a plain implementation computes, and its KV may lie in any blocks."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.demo.decoder import PREFILL_STEP_TOKENS, KvLayout, steps
from examples.demo.text import DOCUMENT, tokenize
from tests.fakes.demo_model import SHAPE, paged_kv, random_decoder, random_weights
from tests.test_imports import REPOSITORY

PROMPT = tokenize(DOCUMENT[: PREFILL_STEP_TOKENS + 60])
Doubles = NDArray[np.float64]


def ignore(num_tokens: int) -> None:
    pass


def reference_logits(token_ids: list[int]) -> Doubles:
    """The logits after each token, in double precision, with a dense mask and a loop over heads."""
    arrays = {name: array.astype(np.float64) for name, array in random_weights().arrays.items()}
    num_tokens, half = len(token_ids), SHAPE.head_size // 2
    positions = np.arange(num_tokens)
    future = positions[None, :] > positions[:, None]
    past = positions[None, :] <= positions[:, None] - SHAPE.window_tokens
    mask = np.where(future | past, -np.inf, 0.0)

    def norm(x: Doubles, name: str) -> Doubles:
        normed: Doubles = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + SHAPE.norm_epsilon) * arrays[name]
        return normed

    def turned(head: Doubles) -> Doubles:
        """Multiply pairs, as complex numbers, by e to the i times position times frequency."""
        frequencies = np.array([SHAPE.rotary_base ** (-i / half) for i in range(half)])
        pairs = (head[:, :half] + 1j * head[:, half:]) * np.exp(1j * np.outer(np.arange(num_tokens), frequencies))
        return np.concatenate((pairs.real, pairs.imag), axis=1)

    def of_head(matrix: Doubles, head: int) -> Doubles:
        return matrix[:, head * SHAPE.head_size : (head + 1) * SHAPE.head_size]

    hidden = arrays["embedding"][token_ids]
    for layer in range(SHAPE.num_layers):
        x = norm(hidden, f"layers.{layer}.attention_norm")
        query, key, value = (x @ arrays[f"layers.{layer}.{name}"].T for name in ("query", "key", "value"))
        heads = []
        for head in range(SHAPE.num_heads):
            shared = head * SHAPE.num_kv_heads // SHAPE.num_heads
            scores = turned(of_head(query, head)) @ turned(of_head(key, shared)).T / math.sqrt(SHAPE.head_size) + mask
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ of_head(value, shared))
        hidden = hidden + np.concatenate(heads, axis=1) @ arrays[f"layers.{layer}.output"].T
        x = norm(hidden, f"layers.{layer}.mlp_norm")
        gate, up = (x @ arrays[f"layers.{layer}.{name}"].T for name in ("gate", "up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ arrays[f"layers.{layer}.down"].T
    logits: Doubles = norm(hidden, "last_norm") @ arrays["embedding"].T
    return logits


@pytest.mark.parametrize("num_tokens", [1, 2, 17, 100, 101, PREFILL_STEP_TOKENS, PREFILL_STEP_TOKENS + 1, len(PROMPT)])
def test_logits_are_those_of_a_plain_implementation(num_tokens: int) -> None:
    decoder, block_ids = random_decoder()
    logits = decoder.prefill(PROMPT[:num_tokens], 0, block_ids, ignore)
    np.testing.assert_allclose(logits, reference_logits(PROMPT)[num_tokens - 1], rtol=2e-3, atol=2e-3)


def test_decoding_token_by_token_is_the_same_as_prefill() -> None:
    decoder, block_ids = random_decoder()
    decoder.prefill(PROMPT[:10], 0, block_ids, ignore)
    reference = reference_logits(PROMPT)
    for position in range(10, 140):
        logits = decoder.decode(PROMPT[position], position, block_ids)
        np.testing.assert_allclose(logits, reference[position], rtol=2e-3, atol=2e-3)


def test_a_prefill_that_finds_its_first_tokens_done_has_the_same_bits_as_a_whole_one() -> None:
    decoder, block_ids = random_decoder()
    whole = decoder.prefill(PROMPT, 0, block_ids, ignore)
    others = [*reversed(block_ids)]
    progress: list[int] = []
    decoder.prefill([*PROMPT[:PREFILL_STEP_TOKENS], 1, 2, 3], 0, others, ignore)  # a prompt that goes on differently
    rest = decoder.prefill(PROMPT, PREFILL_STEP_TOKENS, others, progress.append)
    assert np.array_equal(whole, rest)
    assert progress == [len(PROMPT)]


def test_the_layout_of_the_blocks_changes_no_bit() -> None:
    found = []
    for layout, block_size in ((KvLayout.SPLIT, 16), (KvLayout.PACKED, 32)):
        decoder, block_ids = random_decoder(layout, block_size)
        found.append(decoder.prefill(PROMPT, 0, block_ids, ignore))
        found.append(decoder.decode(7, len(PROMPT), block_ids))
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[3])


@pytest.mark.parametrize("layout", KvLayout)
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 100])
def test_kv_gathered_from_scattered_blocks_is_what_was_written(layout: KvLayout, num_tokens: int) -> None:
    kv = paged_kv(layout, 16, 20)
    block_ids = np.random.default_rng(2).permutation(20).tolist()
    sizes = (num_tokens, SHAPE.num_kv_heads, SHAPE.head_size)
    keys, values = (np.random.default_rng(seed).normal(size=sizes).astype(np.float32) for seed in (3, 4))
    middle = num_tokens // 2
    kv.write(1, 0, block_ids, keys[:middle], values[:middle])
    kv.write(1, middle, block_ids, keys[middle:], values[middle:])
    for start in {0, middle, num_tokens - 1}:
        found = kv.read(1, start, num_tokens, block_ids)
        for written, read in zip((keys, values), found, strict=True):
            assert np.array_equal(written[start:].transpose(1, 0, 2), read)
    untouched = [*kv.keys[0::2], *kv.values[0::2]]
    assert all(np.isnan(plane).all() for plane in untouched)  # other layers
    unused = block_ids[-(-num_tokens // 16) :]
    assert all(np.isnan(plane[1][unused]).all() for plane in (kv.keys, kv.values))


@pytest.mark.parametrize("layer", range(SHAPE.num_layers))
def test_one_wrong_number_in_one_layer_changes_the_logits(layer: int) -> None:
    decoder, block_ids = random_decoder()
    right = decoder.prefill(PROMPT, 0, block_ids, ignore)
    decoder.kv.values[layer][block_ids[PREFILL_STEP_TOKENS // 16 - 1], 3, 0, 0] += 1
    wrong = decoder.prefill(PROMPT, PREFILL_STEP_TOKENS, block_ids, ignore)
    assert not np.array_equal(right, wrong)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, [(0, 1)]),
        (0, 256, [(0, 256)]),
        (0, 257, [(0, 256), (256, 257)]),
        (256, 700, [(256, 512), (512, 700)]),
        (300, 512, [(300, 512)]),
        (511, 512, [(511, 512)]),
        (300, 300, []),
    ],
)
def test_steps_of_a_prefill_end_at_multiples(start: int, end: int, expected: list[tuple[int, int]]) -> None:
    assert steps(start, end) == expected


def test_the_numpy_decoder_and_the_command_need_no_torch() -> None:
    modules = "examples.demo.__main__, examples.demo.command, examples.demo.numpy_decoder, examples.demo.stage"
    probe = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    printed = subprocess.run([sys.executable, "-c", probe], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (printed.stdout, printed.stderr) == ("set()\n", "")
