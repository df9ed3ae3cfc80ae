"""The demo's paged buffers lose nothing, and its comparison has teeth: wrong KV changes the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache

from examples.demo import paged
from examples.demo.__main__ import NUM_NEW_TOKENS, compare
from examples.demo.engine import Answer
from examples.demo.model import SHAPES, ModelSize, build_model, generate, prefill, tokenize
from kvdepot import KvShape

SHAPE = SHAPES[ModelSize.SMALL]
PROMPT = tokenize("The depot keeps what was computed. " * 8)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return build_model(ModelSize.SMALL)


def kv_shape(block_size: int) -> KvShape:
    return KvShape(
        num_layers=SHAPE.num_layers,
        num_blocks=2 * len(PROMPT) // block_size,
        block_size=block_size,
        num_heads=SHAPE.num_kv_heads,
        head_size=SHAPE.head_size,
        dtype="float32",
    )


@pytest.mark.parametrize("make_kv", [paged.split, paged.packed])
@pytest.mark.parametrize("block_size", [16, 32])
def test_what_was_written_to_blocks_is_read_back(
    model: Any, make_kv: Callable[[KvShape], paged.PagedKv], block_size: int
) -> None:
    cache: Any = DynamicCache()
    prefill(model, cache, PROMPT)
    kv = make_kv(kv_shape(block_size))
    for tensor in kv.tensors:
        tensor.fill_(float("nan"))
    block_ids = torch.randperm(len(kv.keys[0])).tolist()[: -(-len(PROMPT) // block_size)]

    kv.write(cache, 0, block_ids)
    rebuilt: Any = kv.read(len(PROMPT), block_ids)

    for layer, copy in zip(cache.layers, rebuilt.layers, strict=True):
        assert torch.equal(layer.keys, copy.keys)
        assert torch.equal(layer.values, copy.values)


@pytest.mark.parametrize("wrong_layer", [None, 0, SHAPE.num_layers - 1])
def test_the_comparison_notices_one_wrong_token_in_one_layer(
    model: Any, capsys: pytest.CaptureFixture[str], wrong_layer: int | None
) -> None:
    matched = 256
    cache: Any = DynamicCache()
    prefill(model, cache, PROMPT[:matched])
    if wrong_layer is not None:
        with torch.inference_mode():
            cache.layers[wrong_layer].values[0, :, 3] += 5.0
    logits = prefill(model, cache, PROMPT)
    tokens, logits = generate(model, cache, logits, NUM_NEW_TOKENS)
    compare(model, PROMPT, Answer(tokens=tokens, logits=logits, matched_tokens=matched))
    printed = capsys.readouterr().out
    assert ('"max_logit_difference": 0.0' in printed) == (wrong_layer is None)
    if wrong_layer == 0:
        assert '"identical": false' in printed
