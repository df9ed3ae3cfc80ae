"""One visit of an engine at a node, as a process: it answers one question, and writes its steps as JSON lines.

python -m examples.cluster.visit --address unix:/run/kvdepot.sock --engine a --prompt prompt.txt
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from examples.demo.__main__ import WARM_UP_TOKENS, say
from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.decoder import Decoder, KvLayout, make_decoder
from examples.demo.engine import Answer, Engine
from examples.demo.text import tokenize
from examples.demo.weights import SHIPPED, WeightsUnreadable
from kvdepot import DepotClient, DepotError
from kvdepot.v1 import cache_pb2

MAX_NEW_TOKENS = 240
LAYOUTS = {"a": (KvLayout.SPLIT, 16), "b": (KvLayout.PACKED, 32), "c": (KvLayout.SPLIT, 32)}
"""Of each engine: the layout of its buffer, and the tokens of a block. Engines share chunks all the same."""
_MOST_QUESTIONS = 20
_NUM_REQUESTS = 3  # with the depot, without it, and the warm-up


def visit(address: str, name: str, prompt: list[int]) -> None:
    """Answer a prompt with the depot, and again without it. If the depot ends in the middle, answer without it alone.

    Raises: DepotError: the depot can't be reached. WeightsUnreadable, OSError.
    """
    decoder = _decoder(name, len(prompt))
    with DepotClient(address) as client:
        engine_id = f"engine-{name}"
        engine = Engine(client, engine_id, decoder)
        try:
            engine.answer_alone(prompt[:WARM_UP_TOKENS], 1)  # the first pass is always slow
            _wait_for_tiers(client, engine_id, prompt)
            say("attached")
            try:
                answer = engine.answer("visit", prompt, MAX_NEW_TOKENS, say)
            except DepotError as error:  # an engine goes on as after a miss
                say("lost", reason=str(error))
                alone = engine.answer_alone(prompt, MAX_NEW_TOKENS)
                say("answered_alone", tokens=alone.tokens, seconds=alone.seconds["first_token"])
                return
            _say_answered(answer, len(prompt))
            alone = engine.answer_alone(prompt, len(answer.tokens))
            kv_difference = engine.kv_difference(answer, alone) if answer.matched_tokens else 0.0
            say(
                "compared",
                seconds=alone.seconds["first_token"],
                identical=alone.tokens == answer.tokens and kv_difference <= decoder.kv_tolerance,
            )
        finally:
            engine.__exit__()


def _wait_for_tiers(client: DepotClient, engine_id: str, prompt: list[int]) -> None:
    """Ask for an unknown prompt until the tiers answer in time. A late answer counts as a miss.

    Raises: DepotError.
    """
    for _ in range(_MOST_QUESTIONS):
        found = client.lookup(engine_id, "warm-up", prompt[::-1])
        if found.miss.reason != cache_pb2.MISS_REASON_TIER_LATE:
            break
    client.end_session(engine_id, "warm-up")


def _decoder(name: str, prompt_tokens: int) -> Decoder:
    layout, block_size = LAYOUTS[name]
    return make_decoder(
        DecoderName.NUMPY,
        DemoSize.FULL,
        DemoDevice.CPU,
        layout,
        SHIPPED,
        block_size=block_size,
        num_tokens=_NUM_REQUESTS * (prompt_tokens + MAX_NEW_TOKENS + block_size) + WARM_UP_TOKENS,
        by_name=False,
    )


def _say_answered(answer: Answer, prompt_tokens: int) -> None:
    say(
        "answered",
        prompt_tokens=prompt_tokens,
        l1_tokens=answer.matched_tokens - answer.l2_tokens,
        l2_tokens=answer.l2_tokens,
        seconds=answer.seconds["first_token"],
        tokens=answer.tokens,
    )


def main() -> int:
    """Run one visit; an error is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m examples.cluster.visit", description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="the depot of the node: unix:/PATH")
    parser.add_argument("--engine", required=True, choices=sorted(LAYOUTS))
    parser.add_argument("--prompt", required=True, type=Path, help="a file with the prompt's text")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        visit(arguments.address, arguments.engine, tokenize(arguments.prompt.read_text(encoding="utf-8")))
    except (DepotError, WeightsUnreadable, OSError) as error:
        print(f"{arguments.address}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
