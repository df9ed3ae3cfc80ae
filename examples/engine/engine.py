"""An inference engine with continuous batching over a paged KV buffer, whose content a depot keeps.

Lines with `# kvdepot` are all that the scheduler adds to use a depot. None of them waits, or fails if the depot does.
"""

from __future__ import annotations

from collections import deque

from examples.demo.decoder import PREFILL_STEP_TOKENS
from examples.demo.numpy_decoder import NumpyDecoder
from examples.engine.blocks import BlockPool
from examples.engine.request import Request
from examples.engine.worker import Piece, Worker
from kvdepot.connector import (
    BLOCK_HASH_SEED,
    BlockIds,
    CacheGroup,
    CacheIdentity,
    ConnectorConfig,
    EndedLoad,
    EngineFacts,
    StepCommands,
    open_scheduler,
)

STEP_TOKENS = 2 * PREFILL_STEP_TOKENS
MAX_REQUESTS = 8


class Engine:
    """One replica of the engine. Each `step` computes a batch of tokens of several requests."""

    def __init__(self, config: ConnectorConfig, engine_id: str, decoder: NumpyDecoder) -> None:
        self.pool = BlockPool(decoder.num_blocks)
        self._block_size = decoder.block_size
        self._end_token = decoder.end_token
        self._waiting: deque[Request] = deque()
        self._loading: dict[str, Request] = {}
        self._running: list[Request] = []
        facts = EngineFacts(  # kvdepot
            engine_id=engine_id,
            identity=CacheIdentity(
                model_name=decoder.model_name,
                model_revision=decoder.model_revision,
                block_hash_seed=BLOCK_HASH_SEED,
            ),
            groups=(CacheGroup(block_size=decoder.block_size),),
            num_blocks=decoder.num_blocks,
            hash_block_size=decoder.block_size,
        )
        self.worker = Worker(config, facts, decoder)
        self.depot = open_scheduler(config, facts, self.pool)  # kvdepot

    def add(self, request_id: str, prompt: list[int], max_new_tokens: int) -> Request:
        """Take a new request.

        Raises: ValueError: it does not fit into the buffer.
        """
        if len(prompt) + max_new_tokens > self.pool.num_blocks * self._block_size:
            raise ValueError(f"{len(prompt)} + {max_new_tokens} tokens are more than the buffer holds")
        request = Request(request_id, prompt, max_new_tokens, self._block_size)
        self._waiting.append(request)
        self.depot.arrived(request)  # kvdepot
        return request

    def abort(self, request: Request) -> None:
        """End a request, whatever it waits for. A finished one is left alone. Its id may be used again at once."""
        for requests in (self._waiting, self._running):
            if request in requests:
                requests.remove(request)
                self._finish(request)
        if self._loading.get(request.request_id) is request:
            del self._loading[request.request_id]
            self._finish(request)

    @property
    def num_loading(self) -> int:
        """How many requests wait for tokens that the depot has."""
        return len(self._loading)

    @property
    def needs_steps(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._loading or self._running) or self.depot.needs_steps()  # kvdepot

    def step(self) -> bool:
        """Make one step. Return whether it computed anything; if not, all requests wait."""
        self._admit()
        batch = self._schedule()
        pieces = [
            Piece(
                each.request_id,
                each.all_token_ids[: each.num_computed_tokens + count],
                each.num_computed_tokens,
                each.block_ids,
            )
            for each, count in batch
        ]
        commands = self._commands(batch)
        tokens, report = self.worker.step(pieces, commands)
        for request, count in batch:
            request.num_computed_tokens += count
            if request.num_computed_tokens == request.num_tokens:
                request.add(tokens[request.request_id])
                if self._has_all_tokens(request):
                    self._running.remove(request)
                    self._finish(request)
        if report is not None:
            for ended in self.depot.reported(report):  # kvdepot
                self._end_load(ended)
        return bool(batch)

    def close(self) -> None:
        """Leave the depot."""
        self.depot.close()  # kvdepot
        self.worker.depot.close()  # kvdepot

    def _admit(self) -> None:
        """Give blocks to waiting requests. Those that the depot has tokens of load them first."""
        for request in list(self._waiting):
            if len(self._running) + len(self._loading) == MAX_REQUESTS:
                return
            matched = self.depot.matched_tokens(request, 0)  # kvdepot: beyond those of an own prefix cache, here none
            if matched is None:  # kvdepot: the answer is not there; others may go first
                continue
            if not self._grow(request, max(matched, self._piece(request))):
                return
            self._waiting.remove(request)
            self.depot.allocated(request, (request.block_ids,), matched)  # kvdepot
            if matched:
                self._loading[request.request_id] = request
            else:
                self._running.append(request)

    def _end_load(self, ended: EndedLoad) -> None:
        """Let a request go on behind what was loaded, or begin again in other blocks."""
        request = self._loading.pop(ended.request_id)
        if ended.failed:
            self._let_go(request)
        else:  # the last token is always computed: the first new token is chosen from its logits
            request.loaded_tokens = ended.num_tokens
            request.num_computed_tokens = min(ended.num_tokens, request.num_tokens - 1)
            self._running.append(request)

    def _schedule(self) -> list[tuple[Request, int]]:
        """Choose the tokens of the next batch. Without free blocks, the request that came last has to wait again."""
        batch, left = [], STEP_TOKENS
        for request in list(self._running):
            count = self._piece(request)
            while request in self._running and count <= left:
                if self._grow(request, request.num_computed_tokens + count):
                    batch.append((request, count))
                    left -= count
                    break
                self._let_go(self._running.pop())
        return batch

    @staticmethod
    def _piece(request: Request) -> int:
        """Return how many tokens to compute next: up to a multiple that makes sums equal, bit for bit."""
        start = request.num_computed_tokens
        return min(request.num_tokens, (start // PREFILL_STEP_TOKENS + 1) * PREFILL_STEP_TOKENS) - start

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Give a request blocks for so many tokens. Return whether there were enough."""
        missing = max(0, -(-num_tokens // self._block_size) - len(request.block_ids))
        if missing > self.pool.num_free:
            return False
        request.block_ids += self.pool.take(missing)
        return True

    def _commands(self, batch: list[tuple[Request, int]]) -> StepCommands:
        """Tell the depot what the next step computes, and which blocks requests have got. Return its commands."""
        new_blocks: list[tuple[str, BlockIds, bool]] = []
        for request, _ in batch:
            known, request.num_reported_blocks = request.num_reported_blocks, len(request.block_ids)
            if request.num_reported_blocks > known:
                new_blocks.append((request.request_id, (request.block_ids[known:],), known == 0))
        scheduled = {request.request_id: count for request, count in batch}
        tables: dict[str, BlockIds] = {request.request_id: (request.block_ids,) for request, _ in batch}
        return self.depot.step(scheduled, tables.get, new_blocks)  # kvdepot

    def _let_go(self, request: Request) -> None:
        """Take a request's blocks away, and let it wait."""
        self._release(request)
        request.num_computed_tokens = 0
        self._waiting.appendleft(request)

    def _has_all_tokens(self, request: Request) -> bool:
        return len(request.new_tokens) == request.max_new_tokens or request.all_token_ids[-1] == self._end_token

    def _finish(self, request: Request) -> None:
        self.depot.finished(request)  # kvdepot: stores that run keep their own references to the blocks
        self._release(request)
        request.is_finished = True

    def _release(self, request: Request) -> None:
        self.pool.release(reversed(request.block_ids))
        request.block_ids, request.num_reported_blocks = [], 0
