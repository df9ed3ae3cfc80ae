"""An engine that makes traffic: conversations of several turns. Their KV goes through a depot.

There is no model. The KV of a token is computed from the tokens before it, at the speed of a slow prefill. So the
engine knows which bytes a retrieve must return, and it ends with an error if it gets others.
"""

from __future__ import annotations

import argparse
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from kvdepot import (
    Attachment,
    DepotClient,
    DepotError,
    KvShape,
    SharedBuffer,
    SharedRegions,
    allocation_record,
    layouts,
)

SHAPE = KvShape(num_layers=4, num_blocks=512, block_size=16, num_heads=4, head_size=32, dtype="uint16")
LAYOUT = layouts.NL_X_TWO_NB_BS_NH_HS
MODEL_NAME = "numbers"
MODEL_REVISION = "1"  # of the weights: chunks outlive this engine
PREFILL_TOKENS_PER_SECOND = 8_000
SYSTEM_PROMPT_TOKENS = 1_024
TURN_TOKENS = 320
NUM_TURNS = 8
NUM_CONVERSATIONS = 50
REPORT_SECONDS = 10.0
RETRY_SECONDS = 2.0


class WrongBytes(Exception):
    """A retrieve returned KV that does not belong to its tokens."""


@dataclass
class Totals:
    """What the engine did since it started."""

    num_requests: int = 0
    prompt_tokens: int = 0
    matched_tokens: int = 0

    def __str__(self) -> str:
        share = self.matched_tokens / max(1, self.prompt_tokens)
        return f"{self.num_requests} requests, {self.prompt_tokens:,} tokens, {share:.0%} of them were in the depot"


@dataclass
class Engine:
    """A paged KV buffer, `[layer, 2, num_blocks, block_size, num_heads, head_size]`, and the blocks that are free."""

    buffer: SharedBuffer = field(default_factory=lambda: SharedBuffer.create(LAYOUT.size_bytes(SHAPE)))
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        sizes = (2, SHAPE.num_blocks, SHAPE.block_size, SHAPE.num_heads, SHAPE.head_size)
        self.kv = self.buffer.view(np.uint16, (SHAPE.num_layers, *sizes))
        self.shared = SharedRegions()
        self.shared.add(self.buffer)

    def serve(self, client: DepotClient, prompts: Iterator[npt.NDArray[np.uint32]]) -> None:
        """Attach, and answer prompts until there are no more.

        Raises: DepotError, WrongBytes.
        """
        group = LAYOUT.from_tensors(list(self.kv), self.shared)
        instance_id = f"{socket.gethostname()}-{uuid4().hex[:6]}"
        with client.attach(
            instance_id=instance_id,
            model_name=MODEL_NAME,
            model_revision=MODEL_REVISION,
            groups=[group],
            regions=self.shared.regions,
        ) as attachment:
            print(f"{instance_id} is attached to kvdepot {attachment.server_version}", flush=True)
            report_at = time.monotonic() + REPORT_SECONDS
            for prompt in prompts:
                self.answer(client, attachment, prompt)
                if time.monotonic() >= report_at:
                    print(self.totals, flush=True)
                    report_at = time.monotonic() + REPORT_SECONDS

    def answer(self, client: DepotClient, attachment: Attachment, prompt: npt.NDArray[np.uint32]) -> None:
        """Do what an engine does before the first token of an answer.

        Raises: DepotError, WrongBytes.
        """
        session_id, token_ids = uuid4().hex, prompt.tolist()
        # The hot blocks of an engine are anywhere in its buffer.
        num_blocks = -(-len(token_ids) // SHAPE.block_size)
        block_ids = np.random.default_rng().permutation(SHAPE.num_blocks)[:num_blocks].tolist()
        record = allocation_record(session_id, block_ids=block_ids, token_ids=token_ids)
        client.report_block_allocation(attachment.instance_id, MODEL_NAME, SHAPE.block_size, [record])

        found = attachment.lookup(session_id, token_ids)
        num_matched_blocks = found.matched_tokens // SHAPE.block_size
        expected = kv_of(prompt)
        if found.HasField("lease"):
            attachment.retrieve(session_id, found.lease, [block_ids[:num_matched_blocks]])
            attachment.release_lease(found.lease)
            if not np.array_equal(self.read(block_ids, found.matched_tokens), expected[:, :, : found.matched_tokens]):
                raise WrongBytes(f"{session_id}: the retrieved KV is not that of its {found.matched_tokens} tokens")
        time.sleep((len(token_ids) - found.matched_tokens) / PREFILL_TOKENS_PER_SECOND)
        self.write(block_ids, expected)
        attachment.store(session_id, token_ids, [block_ids[num_matched_blocks:]], start_token=found.matched_tokens)
        attachment.end_session(session_id)
        self.totals.num_requests += 1
        self.totals.prompt_tokens += len(token_ids)
        self.totals.matched_tokens += found.matched_tokens

    def read(self, block_ids: list[int], num_tokens: int) -> npt.NDArray[np.uint16]:
        """Return the KV of the first tokens, `[layer, 2, token, head, element]`."""
        blocks = self.kv[:, :, block_ids]
        return blocks.reshape(*blocks.shape[:2], -1, *blocks.shape[4:])[:, :, :num_tokens]

    def write(self, block_ids: list[int], kv: npt.NDArray[np.uint16]) -> None:
        """Write the KV of all tokens into their blocks."""
        tokens = np.arange(kv.shape[2])
        self.kv[:, :, np.array(block_ids)[tokens // SHAPE.block_size], tokens % SHAPE.block_size] = kv


def kv_of(prompt: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """Return KV that depends on each token and all tokens before it, `[layer, 2, token, head, element]`."""
    state = np.cumsum(prompt, dtype=np.uint32).astype(np.uint16)
    planes = np.arange(SHAPE.num_layers * 2, dtype=np.uint16).reshape(SHAPE.num_layers, 2, 1, 1, 1)
    elements = np.arange(SHAPE.num_heads * SHAPE.head_size, dtype=np.uint16).reshape(SHAPE.num_heads, SHAPE.head_size)
    return (state[:, None, None] * (elements + 1) + planes).astype(np.uint16)


def conversations() -> Iterator[npt.NDArray[np.uint32]]:
    """Yield prompts for ever. All engines have the same conversations, and take turns of any of them."""
    system_prompt = np.random.default_rng(0).integers(0, 32_000, SYSTEM_PROMPT_TOKENS, np.uint32)
    turns: dict[int, int] = {}
    choose = np.random.default_rng()
    while True:
        conversation = int(choose.integers(NUM_CONVERSATIONS))
        turn = turns[conversation] = turns.get(conversation, 0) + 1
        epoch, length = divmod(turn - 1, NUM_TURNS)
        said = np.random.default_rng((conversation, epoch)).integers(0, 32_000, NUM_TURNS * TURN_TOKENS, np.uint32)
        yield np.concatenate((system_prompt, said[: (length + 1) * TURN_TOKENS]))


def main() -> None:
    """Serve until a signal ends the process. If the depot goes away, attach to the next one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address", help="HOST:PORT or unix:PATH of the depot")
    parser.add_argument("--requests", type=int, default=None, help="end after so many requests")
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda number, frame: parser.exit(0)
    )  # the first process of a container ignores it otherwise
    engine = Engine()
    prompts = islice(conversations(), arguments.requests)
    while arguments.requests is None or engine.totals.num_requests < arguments.requests:
        try:
            with DepotClient(arguments.address) as client:
                engine.serve(client, prompts)
        except DepotError as error:
            print(f"{error}; the next try is in {RETRY_SECONDS:g} s", flush=True)
            time.sleep(RETRY_SECONDS)
        except WrongBytes as error:
            parser.exit(3, f"{error}\n")
    print(engine.totals)


if __name__ == "__main__":
    main()
