"""One engine of the demo, as a process: it writes its steps to standard output as JSON lines.

python -m examples.demo --address unix:/run/kvdepot.sock --engine a
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from google.protobuf.json_format import MessageToDict
from transformers import DynamicCache, LlamaForCausalLM

from examples.demo import paged
from examples.demo.engine import Answer, Engine
from examples.demo.model import SHAPES, ModelSize, build_model, generate, prefill, tokenize
from kvdepot import DepotClient, DepotError, KvShape

NUM_NEW_TOKENS = 16
LICENSE = Path(__file__).parents[2] / "LICENSE"
# A few more than a multiple of the depot's chunks and of the engine's prefill steps.
DOCUMENT_TOKENS = {ModelSize.FULL: 3_100, ModelSize.SMALL: 1_050}
QUESTIONS = {
    "a": "\n\nQuestion: what may I do with this work?\nAnswer:",
    "b": "\n\nQuestion: which notices have to stay in the copies that I give to others?\nAnswer:",
}
LAYOUTS: dict[str, tuple[Callable[[KvShape, str], paged.PagedKv], int]] = {
    "a": (paged.split, 16),
    "b": (paged.packed, 32),
}


def say(event: str, **facts: object) -> None:
    """Write one line for the process that started this one."""
    print(json.dumps({"event": event, **facts}), flush=True)


def run(name: str, address: str, size: ModelSize, device: str, *, stay: bool) -> None:
    """Answer the engine's question. Engine B then repeats it without the depot, and compares.

    With ``stay`` the engine is attached until it is stopped.
    """
    prompt = tokenize(LICENSE.read_text(encoding="utf-8")[: DOCUMENT_TOKENS[size]] + QUESTIONS[name])
    say("started", prompt_tokens=len(prompt))
    model = build_model(size, device)
    prefill(model, DynamicCache(), prompt[:64])  # the first pass is always slow
    make_kv, block_size = LAYOUTS[name]
    shape = SHAPES[size]
    kv_shape = KvShape(
        num_layers=shape.num_layers,
        num_blocks=2 * len(prompt) // block_size,
        block_size=block_size,
        num_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        dtype="float32",
    )
    kv = make_kv(kv_shape, device)
    with DepotClient(address) as client, Engine(client, f"engine-{name}", model, kv) as engine:
        say(
            "attached",
            layout=kv.layout.name,
            block_size=block_size,
            num_layers=shape.num_layers,
            num_weights=model.num_parameters(),
        )
        answer = engine.answer("request-1", prompt, NUM_NEW_TOKENS, lambda done: say("prefilled", num_tokens=done))
        say(
            "answered",
            matched_tokens=answer.matched_tokens,
            retrieved_bytes=answer.retrieved_bytes,
            stored_tokens=answer.stored_tokens,
            stored_bytes=answer.stored_bytes,
            seconds=answer.seconds,
            tokens=answer.tokens,
            summary=MessageToDict(answer.summary),
        )
        if name == "b":
            compare(model, prompt, answer)
        if stay:
            engine.stay()


def compare(model: LlamaForCausalLM, prompt: list[int], answer: Answer) -> None:
    """Compute the answer without the depot in the same two steps, and print how far the two answers differ."""
    cache = DynamicCache()
    again = Answer()
    with again.timed("prefill"):
        prefill(model, cache, prompt[: answer.matched_tokens], lambda done: say("prefilled", num_tokens=done))
    logits = prefill(model, cache, prompt)
    tokens, logits = generate(model, cache, logits, NUM_NEW_TOKENS)
    say(
        "compared",
        prefill_seconds=again.seconds["prefill"],
        identical=tokens == answer.tokens,
        max_logit_difference=float((logits - answer.logits).abs().max()),
    )


def main() -> int:
    """Run one engine; an error is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="the depot, HOST:PORT or unix:/PATH")
    parser.add_argument("--engine", required=True, choices=sorted(QUESTIONS), help="a runs first, b after it")
    parser.add_argument("--size", type=ModelSize, default=ModelSize.FULL, choices=list(ModelSize))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the model and of its KV")
    parser.add_argument("--stay", action="store_true", help="stay attached after the answer, until stopped")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA device that it can use", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    try:
        run(arguments.engine, arguments.address, arguments.size, arguments.device, stay=arguments.stay)
    except DepotError as error:
        print(f"{arguments.address}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
