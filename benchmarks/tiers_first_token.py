"""The time to the first token of a prompt that only the disk has, beside its prefill: the demo's NumPy decoder."""

from __future__ import annotations

import asyncio

from benchmarks import servers, tier_places
from benchmarks.figures import Figure, Goal
from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.decoder import KvLayout, make_decoder
from examples.demo.engine import Engine
from examples.demo.text import DOCUMENT, tokenize
from examples.demo.weights import SHIPPED
from kvdepot import DepotClient
from kvdepot.v1 import admin_pb2
from tests.fakes.waiting import wait_until

TOKENS = 2_000
WARM_UP_TOKENS = 64
MATCHED_TOKENS = TOKENS // 256 * 256
ROUNDS = 5


async def measure() -> list[Figure]:
    """Measure in a thread: the demo's engine blocks."""
    return await asyncio.to_thread(_measure)


def _measure() -> list[Figure]:
    """Store the prompt once. In each round, a new depot with an empty L1 finds it."""
    prompt = tokenize(DOCUMENT)[:TOKENS]
    hits, prefills = [], []
    with tier_places.disk() as place:
        for number in range(ROUNDS + 1):
            with servers.depot("--l1-size", "256MiB", "--l2", place.url, "--l2-write", "all") as depot:
                if number == 0:
                    _asked(depot.unix, prompt, 0)
                    continue
                from_disk, prefill = _asked(depot.unix, prompt, MATCHED_TOKENS)
                hits.append(from_disk * 1e3)
                prefills.append(prefill * 1e3)
    return [
        Figure(
            what=f"first token, {TOKENS:,} tokens, {MATCHED_TOKENS:,} of them from the disk",
            unit="ms",
            values=hits,
            baseline="prefill without a depot",
            baseline_values=prefills,
            goal=Goal(at_most=1.0),
        )
    ]


def _asked(address: str, prompt: list[int], matched_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token with the depot, which must match so many tokens, and without it."""
    decoder = make_decoder(
        DecoderName.NUMPY,
        DemoSize.FULL,
        DemoDevice.CPU,
        KvLayout.SPLIT,
        SHIPPED,
        block_size=16,
        num_tokens=2 * TOKENS + 256,
        by_name=False,
    )
    with DepotClient(address) as client, Engine(client, "bench", decoder) as engine:
        wait_until(lambda: client.get_status().tiers[1].state == admin_pb2.TIER_STATE_AVAILABLE)
        engine.answer_alone(prompt[:WARM_UP_TOKENS], 1)  # the first pass is always slow
        answer = engine.answer("s", prompt, 1)
        assert answer.matched_tokens == matched_tokens, f"{answer.matched_tokens} tokens were on the disk"
        # A prompt that was not found took the time of a prefill, and is its own answer.
        alone = engine.answer_alone(prompt, 1) if matched_tokens else answer
        assert answer.tokens == alone.tokens, "another token"
        return answer.seconds["first_token"], alone.seconds["first_token"]
