"""An engine on a GPU that uses a depot through the client. It reads commands as lines of JSON on standard input.

python -m tests.gpu.service_engine
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from kvdepot import DepotClient
from kvdepot.layout import layouts
from kvdepot.memory import cuda
from kvdepot.v1.cache_pb2 import LookupResponse, StoreResponse
from tests.gpu.service_kv import BLOCK_SIZE, HEAD_SIZE, NUM_BLOCKS, NUM_HEADS, NUM_LAYERS, PROMPT_TOKENS, prompt

PROMPT_BLOCKS = PROMPT_TOKENS // BLOCK_SIZE
NUM_RETRIEVES_AT_ONCE = 16
"""Into each part of the buffer: more than a depot can do in the time that a killed process takes to end."""


class Engine:
    """One rank with a paged buffer of `service_kv`. A seed makes a prompt and its KV, the same in each process."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._layers: list[torch.Tensor] = []
        self._shared = cuda.CudaRegions()
        self._client: DepotClient | None = None

    def describe(self) -> dict[str, Any]:
        """Allocate the buffer if there is none; its group and regions, as an attach has them."""
        if not self._layers:
            sizes = (2, NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE)
            self._layers = [torch.zeros(sizes, dtype=torch.int32, device="cuda") for _ in range(NUM_LAYERS)]
            self._group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(self._layers, self._shared)
        regions = [region.SerializeToString().hex() for region in self._shared.regions]
        return {"group": self._group.SerializeToString().hex(), "regions": regions}

    def attach(self, address: str, instance_id: str) -> None:
        """Attach the buffer."""
        self.describe()
        self._client = DepotClient(address)
        self._depot = self._client.attach(
            instance_id=instance_id, model_name="model", groups=[self._group], regions=self._shared.regions
        )

    def detach(self) -> None:
        """End the attachment, if there is one; the buffer stays."""
        if self._client is not None:
            self._client.close()

    def store(self, seed: int) -> int:
        """Compute a prompt's KV and store it; return the number of stored tokens."""
        blocks = self._blocks()
        self._put(seed, blocks)
        return self._store(seed, blocks, self._new_event()).stored_tokens

    def store_late(self, seed: int, seconds: float) -> float:
        """Make the GPU write a prompt's KV later, but store it at once; return the seconds of the store."""
        blocks = self._blocks()
        self._put(seed + 1, blocks)
        on_device = blocks.to("cuda")  # a copy from ordinary memory waits for all that the GPU has been given
        torch.cuda.synchronize()
        sleep: Any = torch.cuda._sleep
        sleep(int(seconds * 1.5e9))  # cycles of a clock that has about so many a second
        self._put(seed, on_device)
        begin = time.monotonic()
        self._store(seed, blocks, self._new_event())
        return time.monotonic() - begin

    def finds(self, seed: int) -> int:
        """Return how many tokens of a prompt the depot has.

        Raises:
            AssertionError: their KV is wrong.
        """
        found = self._lookup(seed)
        if found.HasField("lease"):
            self._retrieve_exactly(seed, found.lease.lease_id)
            self._depot.release_lease(found.lease)
        return found.matched_tokens

    def lease(self, seed: int) -> None:
        """Lease a prompt that was stored, for `finds_leased`."""
        self._leased = seed, self._lookup(seed).lease.lease_id
        self._in_blocks = self._retrieve_exactly(*self._leased)

    def finds_leased(self) -> None:
        """Retrieve the leased prompt into other blocks than before.

        Raises:
            AssertionError: its KV is wrong, or another process wrote into the blocks of the time before.
        """
        self._check(self._leased[0], self._in_blocks)
        self._in_blocks = self._retrieve_exactly(*self._leased)

    def store_on_and_on(self, first_seed: int) -> None:
        """Store prompts until the depot refuses, several at once; print each when it is stored."""
        self._hold(first_seed)
        seeds = itertools.count(first_seed + 1)

        def prepare(blocks: torch.Tensor) -> Callable[[], None]:
            seed = next(seeds)
            self._put(seed, blocks)
            event = self._new_event()

            def store() -> None:
                self._store(seed, blocks, event)
                self._say({"stored": seed})

            return store

        self._in_bursts(prepare, 1)

    def retrieve_on_and_on(self, first_seed: int) -> None:
        """Store a prompt, and retrieve it until the depot refuses, so often at once that it takes a while."""
        lease_id = self._hold(first_seed)
        event = self._new_event()
        self._in_bursts(lambda blocks: lambda: self._retrieve(lease_id, blocks, event), NUM_RETRIEVES_AT_ONCE)

    def _in_bursts(self, prepare: Callable[[torch.Tensor], Callable[[], None]], num_at_once: int) -> None:
        """Prepare calls for all parts of the buffer and make them at once, again and again until one fails."""
        parts = torch.randperm(NUM_BLOCKS).split(PROMPT_BLOCKS) * num_at_once
        with ThreadPoolExecutor(len(parts)) as pool:
            while True:
                calls = [prepare(blocks) for blocks in parts]
                for made in [pool.submit(call) for call in calls]:
                    made.result()

    def _hold(self, seed: int) -> str:
        self.store(seed)
        self._say({"stored": seed})
        return self._lookup(seed).lease.lease_id

    def _blocks(self) -> torch.Tensor:
        """Return blocks for a prompt, anywhere and in any order."""
        return torch.randperm(NUM_BLOCKS)[:PROMPT_BLOCKS]

    def _put(self, seed: int, blocks: torch.Tensor) -> None:
        """Give the GPU the work to write a prompt's KV into blocks."""
        blocks = blocks.to("cuda")
        for layer, kv in zip(self._layers, _kv(seed), strict=True):
            layer[:, blocks] = kv

    def _check(self, seed: int, blocks: torch.Tensor) -> None:
        blocks = blocks.to("cuda")
        for number, (layer, kv) in enumerate(zip(self._layers, _kv(seed), strict=True)):
            assert torch.equal(layer[:, blocks], kv), f"layer {number} of the prompt of seed {seed} is wrong"

    def _lookup(self, seed: int) -> LookupResponse:
        return self._depot.lookup("session", prompt(seed))

    def _store(self, seed: int, blocks: torch.Tensor, event: Any) -> StoreResponse:
        return self._depot.store("session", prompt(seed), [blocks.tolist()], ready_event=cuda.ready_event(event))

    def _retrieve(self, lease_id: str, blocks: torch.Tensor, event: Any) -> None:
        self._depot.retrieve("session", lease_id, [blocks.tolist()], ready_event=cuda.ready_event(event))

    def _retrieve_exactly(self, seed: int, lease_id: str) -> torch.Tensor:
        blocks = self._blocks()
        self._put(seed + 1, blocks)  # what must be overwritten
        self._retrieve(lease_id, blocks, self._new_event())
        self._check(seed, blocks)
        return blocks

    def _new_event(self) -> Any:
        """Return an event that happens when the GPU has done all its work so far."""
        event: Any = torch.cuda.Event(interprocess=True)
        event.record()
        return event


def _kv(seed: int) -> torch.Tensor:
    """Return the KV of a prompt, ``[layers, 2, blocks, tokens, heads, size]``, in which all elements differ."""
    sizes = (NUM_LAYERS, 2, PROMPT_BLOCKS, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE)
    numbers = torch.arange(torch.Size(sizes).numel(), dtype=torch.int32, device="cuda")
    return (numbers * 40_503 + seed * 7_919).view(sizes)


def main() -> None:
    """Answer each line on standard input with one on standard output. An error is also an answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer

    def say(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")  # at once, because several threads write

    engine = Engine(say)
    for line in sys.stdin:
        order = json.loads(line)
        method: Callable[..., Any] = getattr(engine, order.pop("do"))
        try:
            say({"answer": method(**order)})
        except Exception as error:  # the test decides what it means
            say({"error": type(error).__name__, "reason": getattr(error, "reason", ""), "message": str(error)})


if __name__ == "__main__":
    main()
