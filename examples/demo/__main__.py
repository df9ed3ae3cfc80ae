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

from google.protobuf.json_format import MessageToDict

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.decoder import Decoder, DeviceMissing, KvLayout, make_decoder
from examples.demo.engine import Answer, Engine
from examples.demo.text import DOCUMENT, QUESTIONS, prompt_of, tokenize
from examples.demo.weights import SHIPPED, WeightsUnreadable
from kvdepot import DepotClient, DepotError

NUM_NEW_TOKENS = {DecoderName.NUMPY: {"a": 8, "b": 240}, DecoderName.TRANSFORMERS: {"a": 8, "b": 16}}
"""The most tokens that each engine generates. Engine A is there to compute the document."""

WARM_UP_TOKENS = 64
# A few more than a multiple of the depot's chunks. NumPy's decoder gets all of the document: its window makes it quick.
DOCUMENT_BYTES = {
    DecoderName.NUMPY: {DemoSize.FULL: len(DOCUMENT), DemoSize.SMALL: 1_050},
    DecoderName.TRANSFORMERS: {DemoSize.FULL: 3_100, DemoSize.SMALL: 1_050},
}
LAYOUTS = {"a": (KvLayout.SPLIT, 16), "b": (KvLayout.PACKED, 32)}
"""Of each engine: the layout of its buffer, and the tokens of a block."""

Wrap = Callable[[Decoder], Decoder]


def say(event: str, /, **facts: object) -> None:
    """Write one line for the process that started this one."""
    print(json.dumps({"event": event, **facts}), flush=True)


def run(arguments: argparse.Namespace, wrap: Wrap = lambda decoder: decoder) -> None:
    """Answer the engine's question. Engine B then repeats it without the depot, and compares.

    With ``arguments.stay`` the engine is attached until it is stopped.

    Raises: DepotError, WeightsUnreadable, DeviceMissing, OSError.
    """
    name, num_new_tokens = arguments.engine, NUM_NEW_TOKENS[arguments.decoder][arguments.engine]
    document = DOCUMENT[: DOCUMENT_BYTES[arguments.decoder][arguments.size]]
    prompt = tokenize(document + prompt_of(QUESTIONS[name]))
    say("started", prompt_tokens=len(prompt))
    layout, block_size = LAYOUTS[name]
    num_requests = 2 if name == "b" else 1
    decoder = make_decoder(
        arguments.decoder,
        arguments.size,
        arguments.device,
        layout,
        arguments.weights,
        block_size=block_size,
        num_tokens=num_requests * (len(prompt) + num_new_tokens + block_size) + WARM_UP_TOKENS + block_size,
        by_name=not arguments.address.startswith("unix:"),
    )
    with DepotClient(arguments.address) as client, Engine(client, f"engine-{name}", wrap(decoder)) as engine:
        engine.answer_alone(prompt[:WARM_UP_TOKENS], 1)  # the first pass is always slow
        say(
            "attached",
            description=decoder.description,
            layout=decoder.layout_name,
            block_size=decoder.block_size,
            num_layers=decoder.num_layers,
            num_weights=decoder.num_weights,
        )
        answer = engine.answer("request-1", prompt, num_new_tokens, say)
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
            compare(engine, decoder.kv_tolerance, prompt, answer)
        if arguments.stay:
            engine.stay()


def compare(engine: Engine, kv_tolerance: float, prompt: list[int], answer: Answer) -> None:
    """Compute the answer without the depot, in the same steps, and say how far the KV and the two answers differ."""
    alone = engine.answer_alone(prompt, len(answer.tokens), say)
    kv_difference = engine.kv_difference(answer, alone)
    say(
        "compared",
        seconds=alone.seconds,
        tokens=alone.tokens,
        identical=alone.tokens == answer.tokens and kv_difference <= kv_tolerance,
        max_kv_difference=kv_difference,
        max_logit_difference=alone.differs_from(answer),
    )


def main(wrap: Wrap = lambda decoder: decoder) -> int:
    """Run one engine; an error is one line on standard error. ``wrap`` may put something around its decoder."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="the depot, HOST:PORT or unix:/PATH")
    parser.add_argument("--engine", required=True, choices=sorted(QUESTIONS), help="a runs first, b after it")
    parser.add_argument("--decoder", type=DecoderName, default=DecoderName.NUMPY, choices=list(DecoderName))
    parser.add_argument("--size", type=DemoSize, default=DemoSize.FULL, choices=list(DemoSize))
    parser.add_argument(
        "--device", type=DemoDevice, default=DemoDevice.CPU, choices=list(DemoDevice), help="of the model and its KV"
    )
    parser.add_argument(
        "--weights", type=Path, default=SHIPPED, help="of NumPy's decoder, as examples.demo.train writes"
    )
    parser.add_argument("--stay", action="store_true", help="stay attached after the answer, until stopped")
    arguments = parser.parse_args()
    if arguments.device is DemoDevice.CUDA and arguments.decoder is DecoderName.NUMPY:
        parser.error("--device cuda needs --decoder transformers")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        run(arguments, wrap)
    except DepotError as error:
        print(f"{arguments.address}: {error}", file=sys.stderr)
        return 1
    except (WeightsUnreadable, DeviceMissing, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
