"""Engines of the demo share a prompt through a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from examples.demo import paged
from examples.demo.__main__ import NUM_NEW_TOKENS
from examples.demo.engine import Engine
from examples.demo.model import ModelSize, build_model
from kvdepot import DepotClient
from tests.examples.test_demo_engine import PROMPT, kv_shape


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return build_model(ModelSize.SMALL)


def test_engines_with_different_layouts_share_a_prompt(model: Any, start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "16MiB", "--chunk-size", "64")
    with DepotClient(address) as client:
        answers = []
        for name, make_kv, block_size in (("a", paged.split, 16), ("b", paged.packed, 32)):
            with Engine(client, name, model, make_kv(kv_shape(block_size))) as engine:
                answers.append(engine.answer("request", PROMPT, NUM_NEW_TOKENS, lambda done: None))
    first, second = answers
    whole_chunks = len(PROMPT) // 64 * 64
    assert (first.matched_tokens, first.stored_tokens) == (0, whole_chunks)
    assert (second.matched_tokens, second.stored_tokens) == (whole_chunks, 0)
    assert second.retrieved_bytes == first.stored_bytes > 0
    assert len(set(first.tokens)) > NUM_NEW_TOKENS // 2  # or else equal tokens would mean little
    assert [operation.num_tokens for operation in second.summary.operations] == [whole_chunks, whole_chunks, 0]


def test_a_prompt_that_matches_as_a_whole_still_gets_its_logits(
    model: Any, start_server_process: Callable[..., str]
) -> None:
    address = start_server_process("--l1-size", "16MiB", "--chunk-size", "64")
    prompt = PROMPT[:128]
    with DepotClient(address) as client, Engine(client, "a", model, paged.split(kv_shape(16))) as engine:
        first, second = (engine.answer(f"request-{i}", prompt, NUM_NEW_TOKENS, lambda done: None) for i in range(2))
    assert second.matched_tokens == len(prompt)
    assert second.tokens == first.tokens
