"""Engines of the demo share a prompt through a real server, whatever decoder they have."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.decoder import PREFILL_STEP_TOKENS, Decoder, KvLayout, make_decoder
from examples.demo.engine import Engine
from examples.demo.text import DOCUMENT, tokenize
from examples.demo.weights import SHIPPED
from kvdepot import DepotClient

PROMPT = tokenize(DOCUMENT[: PREFILL_STEP_TOKENS + 20])
NUM_NEW_TOKENS = 8
DECODERS = [
    DecoderName.NUMPY,
    pytest.param(
        DecoderName.TRANSFORMERS,
        marks=pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
    ),
]


@pytest.fixture
def address(start_server_process: Callable[..., str]) -> str:
    return start_server_process("--l1-size", "16MiB", "--chunk-size", "64")


def decoder_of(name: DecoderName, layout: KvLayout, block_size: int) -> Decoder:
    return make_decoder(
        name,
        DemoSize.SMALL,
        DemoDevice.CPU,
        layout,
        SHIPPED,
        block_size=block_size,
        num_tokens=3 * len(PROMPT),
        by_name=True,
    )


@pytest.mark.parametrize("name", DECODERS)
def test_engines_with_different_layouts_share_a_prompt(name: DecoderName, address: str) -> None:
    with DepotClient(address) as client:
        answers = []
        for instance_id, layout, block_size in (("a", KvLayout.SPLIT, 16), ("b", KvLayout.PACKED, 32)):
            with Engine(client, instance_id, decoder_of(name, layout, block_size)) as engine:
                answers += [
                    engine.answer("request", PROMPT, NUM_NEW_TOKENS),
                    engine.answer_alone(PROMPT, NUM_NEW_TOKENS),
                ]
    first, first_alone, second, second_alone = answers
    whole_chunks = len(PROMPT) // 64 * 64
    assert (first.matched_tokens, first.stored_tokens) == (0, whole_chunks)
    assert (second.matched_tokens, second.stored_tokens) == (whole_chunks, 0)
    assert second.retrieved_bytes == first.stored_bytes > 0
    assert first.tokens == first_alone.tokens == second.tokens == second_alone.tokens
    assert second.differs_from(second_alone) == 0
    assert len(set(first.tokens)) > NUM_NEW_TOKENS // 2  # or else equal tokens would mean little
    assert [operation.num_tokens for operation in second.summary.operations] == [whole_chunks, whole_chunks, 0]


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_that_matches_as_a_whole_still_gets_its_logits(name: DecoderName, address: str) -> None:
    prompt = PROMPT[:128]
    with (
        DepotClient(address) as client,
        Engine(client, "a", decoder_of(name, KvLayout.SPLIT, 16)) as engine,
    ):
        first, second = (engine.answer(f"request-{i}", prompt, NUM_NEW_TOKENS) for i in range(2))
    assert second.matched_tokens == len(prompt)
    assert second.tokens == first.tokens


def test_an_engine_refuses_what_its_buffer_cannot_hold(address: str) -> None:
    with (
        DepotClient(address) as client,
        Engine(client, "a", decoder_of(DecoderName.NUMPY, KvLayout.SPLIT, 16)) as engine,
        pytest.raises(MemoryError, match="blocks are needed and"),
    ):
        engine.answer("request", PROMPT * 4, NUM_NEW_TOKENS)
