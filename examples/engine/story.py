"""Two engines and a depot: what they do, and whether each answer is what it would be without the depot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from examples.demo.corpus import questions
from examples.demo.decoder import PREFILL_STEP_TOKENS, KvLayout
from examples.demo.numpy_decoder import NumpyDecoder, numpy_decoder
from examples.demo.text import DOCUMENT, prompt_of, tokenize
from examples.demo.weights import SHIPPED
from examples.engine.depot import Depot
from examples.engine.engine import Engine
from examples.engine.request import Request
from kvdepot import DepotClient
from kvdepot.connector import ConnectorConfig

MAX_NEW_TOKENS = 24
BUFFER_TOKENS = 16_384
DOCUMENT_BYTES = 1_100
LIMIT_SECONDS = 120.0
_IDLE_SECONDS = 0.001


class Story:
    """Engine A, engine B and the depot. Each method is a part; call them in their order."""

    def __init__(self, folder: Path, until_end: ExitStack) -> None:
        self.depot = Depot(folder, PREFILL_STEP_TOKENS, until_end)
        self.depot.start()
        config = ConnectorConfig(address=self.depot.address, lookup_timeout_seconds=10.0)  # the machine may be busy
        self.engines = [
            until_end.enter_context(_engine(config, name, layout, block_size))
            for name, layout, block_size in (("a", KvLayout.SPLIT, 16), ("b", KvLayout.PACKED, 32))
        ]
        self._questions = (question for _ in iter(int, 1) for question, _ in questions())
        self._alone = _decoder(KvLayout.SPLIT, 16)
        self._num_requests = 0

    def compute(self) -> list[Request]:
        """Let engine A compute prompts that begin with one document."""
        return self._run([self._ask(self.engines[0], 0) for _ in range(4)])

    def share(self) -> list[Request]:
        """Let engine B get other prompts that begin with the same document."""
        return self._run([self._ask(self.engines[1], 0) for _ in range(4)])

    def abort(self) -> list[Request]:
        """Abort requests of engine B at once, while they wait or load, and while they are computed."""
        engine = self.engines[1]
        requests = [self._ask(engine, 0) for _ in range(6)]
        engine.abort(requests[0])
        engine.step()
        engine.abort(requests[1])
        self._until(lambda: requests[2].num_computed_tokens > 0)
        engine.abort(requests[2])
        return self._run(requests[3:])

    def kill(self) -> list[Request]:
        """Kill the depot while engine B loads from it and engine A stores into it."""
        requests = [self._ask(engine, number) for number, engine in enumerate(self.engines[::-1]) for _ in range(3)]
        self._until(lambda: any(engine.num_loading for engine in self.engines))
        self.depot.kill()
        return self._run(requests)

    def restart(self) -> list[Request]:
        """Start the depot again. The engines attach by themselves, and find what was stored before."""
        self.depot.start()
        self._until(lambda: all(engine.depot.is_attached for engine in self.engines))
        return self._run([self._ask(engine, 0) for engine in self.engines for _ in range(2)])

    def faults(self, requests: Sequence[Request]) -> list[str]:
        """Return what is wrong after all parts: other tokens than without a depot, or something that is left."""
        faults = [
            f"{request.request_id} got other tokens than without a depot"
            for request in requests
            if request.all_token_ids != self._tokens_alone(request)
        ]
        num_used = sum(engine.pool.num_blocks - engine.pool.num_free for engine in self.engines)
        num_sessions = self._num_sessions()
        faults += [f"{num_used} blocks are in use"] if num_used else []
        return faults + ([f"{num_sessions} sessions are open"] if num_sessions else [])

    def _tokens_alone(self, request: Request) -> list[int]:
        """Return the tokens of a request as one computes them without an engine."""
        tokens, start = request.all_token_ids[: request.num_prompt_tokens], 0
        while len(tokens) < request.num_tokens:
            logits = self._alone.prefill(tokens, start, range(self._alone.num_blocks), lambda _: None)
            start = len(tokens)
            tokens.append(int(logits.argmax()))
        return tokens

    def _num_sessions(self) -> int:
        """Return how many sessions the depot has once those of finished requests have ended, or after the limit."""
        with DepotClient(self.depot.address) as client:
            deadline = time.monotonic() + LIMIT_SECONDS
            while (count := client.get_status().num_sessions) and time.monotonic() < deadline:
                time.sleep(_IDLE_SECONDS)
            return count

    def _ask(self, engine: Engine, document: int) -> Request:
        """Let an engine begin a request about one of the documents."""
        self._num_requests += 1
        text = DOCUMENT[document * DOCUMENT_BYTES :][:DOCUMENT_BYTES] + prompt_of(next(self._questions))
        return engine.add(f"request-{self._num_requests}", tokenize(text), MAX_NEW_TOKENS)

    def _run(self, requests: list[Request]) -> list[Request]:
        """Make steps until the engines have nothing to do."""
        self._until(lambda: not any(engine.needs_steps for engine in self.engines))
        return requests

    def _until(self, is_so: Callable[[], bool]) -> None:
        """Make steps of both engines in turns, until something is so.

        Raises: TimeoutError.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the engines have not done in {LIMIT_SECONDS:g} s what was expected")
            have_computed = [engine.step() for engine in self.engines]
            if not any(have_computed):
                time.sleep(_IDLE_SECONDS)  # all requests wait for the depot


@contextmanager
def _engine(config: ConnectorConfig, name: str, layout: KvLayout, block_size: int) -> Iterator[Engine]:
    engine = Engine(config, f"engine-{name}-{uuid4()}", _decoder(layout, block_size))
    try:
        yield engine
    finally:
        engine.close()


def _decoder(layout: KvLayout, block_size: int) -> NumpyDecoder:
    return numpy_decoder(layout, block_size, BUFFER_TOKENS, "fd", SHIPPED)
