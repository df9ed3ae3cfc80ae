"""The decoder of transformers keeps its KV in blocks, loses nothing there, and wrong KV changes its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache

from examples.demo import torch_kv
from examples.demo.choices import DemoDevice, DemoSize
from examples.demo.decoder import PREFILL_STEP_TOKENS, KvLayout
from examples.demo.text import DOCUMENT, tokenize
from examples.demo.transformers_decoder import SHAPES, TransformersDecoder, transformers_decoder
from kvdepot import KvShape

SHAPE = SHAPES[DemoSize.SMALL]
PROMPT = tokenize(DOCUMENT[: PREFILL_STEP_TOKENS + 30])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ignore(num_tokens: int) -> None:
    pass


def decoder_of(layout: KvLayout, block_size: int) -> TransformersDecoder:
    return transformers_decoder(DemoSize.SMALL, DemoDevice.CPU, layout, block_size, 2 * len(PROMPT))


@pytest.mark.parametrize("make_kv", [torch_kv.split, torch_kv.packed])
@pytest.mark.parametrize("block_size", [16, 32])
def test_what_was_written_to_blocks_is_read_back(
    make_kv: Callable[[KvShape], torch_kv.TorchKv], block_size: int
) -> None:
    sizes = (1, SHAPE.num_kv_heads, len(PROMPT), SHAPE.head_size)
    cache: Any = DynamicCache()
    for layer in range(SHAPE.num_layers):
        cache.update(torch.randn(sizes), torch.randn(sizes), layer)
    shape = KvShape(
        num_layers=SHAPE.num_layers,
        num_blocks=2 * len(PROMPT) // block_size,
        block_size=block_size,
        num_heads=SHAPE.num_kv_heads,
        head_size=SHAPE.head_size,
        dtype="float32",
    )
    kv = make_kv(shape)
    for tensor in kv.tensors:
        tensor.fill_(float("nan"))
    block_ids = torch.randperm(len(kv.keys[0])).tolist()[: -(-len(PROMPT) // block_size)]

    kv.write(cache, 0, block_ids)
    rebuilt: Any = kv.read(len(PROMPT), block_ids)

    for layer, copy in zip(cache.layers, rebuilt.layers, strict=True):
        assert torch.equal(layer.keys, copy.keys)
        assert torch.equal(layer.values, copy.values)


def test_a_prefill_that_finds_its_first_tokens_done_answers_as_a_whole_one() -> None:
    decoder = decoder_of(KvLayout.PACKED, 32)
    block_ids = list(range(decoder.num_blocks))
    whole = decoder.prefill(PROMPT, 0, block_ids, ignore), decoder.decode(65, len(PROMPT), block_ids)
    rest = decoder.prefill(PROMPT, PREFILL_STEP_TOKENS, block_ids, ignore), decoder.decode(65, len(PROMPT), block_ids)
    assert (whole[0] == rest[0]).all()
    assert (whole[1] == rest[1]).all()


@pytest.mark.parametrize("wrong_layer", [0, SHAPE.num_layers - 1])
def test_one_wrong_token_in_one_layer_changes_the_logits(wrong_layer: int) -> None:
    decoder = decoder_of(KvLayout.SPLIT, 16)
    block_ids = list(range(decoder.num_blocks))
    right = decoder.prefill(PROMPT, 0, block_ids, ignore)
    decoder.kv.values[wrong_layer][0, 3] += 5.0
    wrong = decoder.prefill(PROMPT, PREFILL_STEP_TOKENS, block_ids, ignore)
    assert abs(right - wrong).max() > 1e-3
