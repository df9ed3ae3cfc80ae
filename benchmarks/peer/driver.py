"""``python -m benchmarks.peer.driver URL``: an engine of LMCache's server that reads commands as lines of JSON.

It runs in the peer's environment and goes the way of the peer's own vLLM connector: its request client, its
engine-driven transfer context, its keys. A line is ``{"do": NAME, …}``; the answer is one line.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.transfer_context import EngineDrivenContextShm, create_transfer_context
from lmcache.v1.multiprocess.transport.base import RequestClient
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from benchmarks.peer import answering, shapes

TIMEOUT_SECONDS = 60.0
LAYOUT = {"kv_layout": "NHD"}


class Buffer:
    """A paged KV buffer as vLLM lays it out, [K or V, block, token, head, size] per layer, known to the server."""

    def __init__(
        self, client: RequestClient, model_name: str, num_layers: int, num_blocks: int, num_heads: int, head_size: int
    ) -> None:
        shape = (2, num_blocks, shapes.BLOCK_SIZE, num_heads, head_size)
        self.model_name = model_name
        self._layers = {f"layer.{n}": torch.ones(shape, dtype=torch.bfloat16) for n in range(num_layers)}
        self._context = create_transfer_context(
            self._layers, instance_id=hash(model_name) & 0xFFFF, req_client=client, mode="engine_driven"
        )
        self._blocks_per_chunk = shapes.CHUNK_SIZE // shapes.BLOCK_SIZE
        self._context.register(
            self._layers, model_name, 1, self._blocks_per_chunk, TIMEOUT_SECONDS, layout_hints=LAYOUT
        )
        shared = isinstance(self._context.engine_driven_context, EngineDrivenContextShm)
        require(shared, "the server shares no memory: is /dev/shm large enough?")

    def key(self, session: str, tokens: tuple[int, ...], worker: int | None) -> IPCCacheServerKey:
        """Return the key of the whole prompt; for every worker if none is named."""
        return IPCCacheServerKey(
            model_name=self.model_name,
            world_size=1,
            worker_id=worker,
            token_ids=tokens,
            start=0,
            end=len(tokens),
            request_id=session,
            num_kv_readers=1,
        )

    def store(self, key: IPCCacheServerKey, blocks: list[int]) -> None:
        """Return when the server has committed the bytes."""
        future = self._context.submit_store(key.request_id, key, self._layers, [blocks], None, self._blocks_per_chunk)
        require(future.result(TIMEOUT_SECONDS), "the store was refused")

    def retrieve(self, key: IPCCacheServerKey, blocks: list[int]) -> None:
        """Return when the blocks are written."""
        future = self._context.submit_retrieve(
            key.request_id, key, self._layers, [blocks], None, self._blocks_per_chunk
        )
        require(future.result(TIMEOUT_SECONDS), "the retrieve was refused")

    def read(self, blocks: list[int]) -> torch.Tensor:
        """Return a copy of the blocks' bits, [layer, K or V, block, …]."""
        return torch.stack([layer[:, blocks] for layer in self._layers.values()]).view(torch.int16)

    def randomize(self, blocks: list[int]) -> None:
        """Write random bits to the blocks."""
        for layer in self._layers.values():
            bits = layer.view(torch.int16)
            bits[:, blocks] = torch.randint(-(2**15), 2**15, bits[:, blocks].shape, dtype=torch.int16)


class Engine:
    """A client of the server, and its commands."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = RequestClientFactory.create(url)
        self._others: list[RequestClient] = []
        self._large: Buffer | None = None
        self._small: Buffer | None = None
        self._names = map("session-{}".format, itertools.count())  # next() of it is one step to all threads
        chunk_size = self._client.get_chunk_size().result(TIMEOUT_SECONDS)
        require(chunk_size == shapes.CHUNK_SIZE, f"the server's chunks have {chunk_size} tokens")

    def attach_large(self) -> dict[str, Any]:
        """Register the buffer of store, retrieve and check."""
        torch.set_num_threads(shapes.THREADS)
        heads = (shapes.NUM_HEADS, shapes.HEAD_SIZE)
        self._large = Buffer(self._client, "large", shapes.NUM_LAYERS, shapes.NUM_BLOCKS, *heads)
        return {}

    def attach_small(self) -> dict[str, Any]:
        """Register a buffer of a tiny model, and store the prompt that lookups find."""
        num_blocks = shapes.LONG // shapes.BLOCK_SIZE
        self._small = Buffer(self._client, "small", 1, num_blocks, 1, 8)
        session = next(self._names)
        self._small.store(self._small.key(session, prompt(shapes.STORED, shapes.LONG), 0), list(range(num_blocks)))
        self._client.end_session(session).result(TIMEOUT_SECONDS)
        return {}

    def move(self, tokens: list[int], blocks: list[int]) -> dict[str, Any]:
        """Return a store and a retrieve of one prompt, which is forgotten then."""
        large = attached(self._large)
        session = next(self._names)
        key = large.key(session, tuple(tokens), 0)
        begin = time.perf_counter()
        large.store(key, blocks)
        store_seconds = time.perf_counter() - begin
        self._lock(self._client, large, session, tuple(tokens), len(tokens))
        begin = time.perf_counter()
        large.retrieve(key, blocks)
        retrieve_seconds = time.perf_counter() - begin
        self._client.end_session(session).result(TIMEOUT_SECONDS)
        self._client.clear(False).result(TIMEOUT_SECONDS)
        return {"store_seconds": store_seconds, "retrieve_seconds": retrieve_seconds}

    def check(self, tokens: list[int], blocks: list[int], other_blocks: list[int]) -> dict[str, Any]:
        """Return whether a prompt's bits come back in other blocks."""
        large = attached(self._large)
        session = next(self._names)
        key = large.key(session, tuple(tokens), 0)
        large.randomize(blocks)
        stored = large.read(blocks)
        large.store(key, blocks)
        large.randomize(blocks)
        self._lock(self._client, large, session, tuple(tokens), len(tokens))
        large.retrieve(key, other_blocks)
        self._client.end_session(session).result(TIMEOUT_SECONDS)
        self._client.clear(False).result(TIMEOUT_SECONDS)
        return {"equal": torch.equal(stored, large.read(other_blocks))}

    def transact(self, first_token: int, num_tokens: int, clients: int, seconds: float) -> dict[str, Any]:
        """Make lookup transactions for some seconds, with a thread and a connection for each client."""
        expected = num_tokens if first_token == shapes.STORED else 0
        return self._transact(itertools.repeat(prompt(first_token, num_tokens)), expected, clients, seconds)

    def _transact(
        self, prompts: Iterator[tuple[int, ...]], expected: int, clients: int, seconds: float
    ) -> dict[str, Any]:
        """Look prompts up for some seconds. Several threads call next(prompts), so it must be safe for them."""
        small = attached(self._small)
        while len(self._others) < clients:
            self._others.append(RequestClientFactory.create(self._url))
            self._others[-1].ping(None).result(TIMEOUT_SECONDS)
        num_done = [0] * clients
        failures: list[Exception] = []
        begin = time.perf_counter()

        def run(number: int) -> None:
            client = self._others[number]
            try:
                while not num_done[number] or time.perf_counter() < begin + seconds:
                    session = next(self._names)
                    key = self._lock(client, small, session, next(prompts), expected)
                    if expected:
                        client.free_lookup_locks(key, 1).result(TIMEOUT_SECONDS)
                    client.end_session(session).result(TIMEOUT_SECONDS)
                    num_done[number] += 1
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return {"rate": sum(num_done) / (time.perf_counter() - begin)}

    @staticmethod
    def _lock(
        client: RequestClient, buffer: Buffer, session: str, tokens: tuple[int, ...], expected_tokens: int
    ) -> IPCCacheServerKey:
        """Look up until the server returns the length of the match, which is locked then."""
        key = buffer.key(session, tokens, None)
        client.lookup(key, 1).result(TIMEOUT_SECONDS)
        while (num_chunks := client.query_prefetch_status(session).result(TIMEOUT_SECONDS)) is None:
            pass
        found = num_chunks * shapes.CHUNK_SIZE
        require(found == expected_tokens, f"{found} tokens were found, not {expected_tokens}")
        return key


def prompt(first_token: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(range(first_token, first_token + num_tokens))


def attached(buffer: Buffer | None) -> Buffer:
    require(buffer is not None, "there is no buffer yet")
    assert buffer is not None
    return buffer


def require(holds: object, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def main(arguments: Sequence[str], engine_type: type[Engine] = Engine) -> None:
    """Answer until the input ends."""
    output = answering.own_output()
    engine = engine_type(arguments[0])
    answering.say(output, {"ready": True})
    answering.serve(engine, sys.stdin, output)
    os._exit(0)  # the libraries' threads do not end


if __name__ == "__main__":
    main(sys.argv[1:])
