"""Plays a trace to depots of its own, each request to the depot that the router chooses, and counts what is found."""

from __future__ import annotations

import asyncio
import queue
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from examples.router.connection import Endpoints
from examples.router.policies import PolicyName, make_policy
from examples.router.reader import Change, Reader
from examples.router.router import Router
from kvdepot.cli.processes import ChildFailed, server_process
from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.request_trace import Trace, token_ids
from kvdepot.cli.trace_player import replay_trace

MODEL = "replay"
"""The model's name in the chunks of `replay_trace`."""
ANSWER_SECONDS = 30.0
LATEST_SECONDS = 1.0
"""How long the player waits for the events of a request before it sends the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a run. `tokens_by_depot` are the prompt tokens that the router sent to each depot.

    `expected_tokens` are those that the router thought the chosen depot has. `num_unheard` counts the requests whose
    events did not come in time.
    """

    asked_tokens: int
    found_tokens: int
    expected_tokens: int
    tokens_by_depot: list[int]
    num_unheard: int

    @property
    def hit_ratio(self) -> float:
        """The part of the prompts' tokens that came back from a depot."""
        return self.found_tokens / max(1, self.asked_tokens)

    @property
    def expected_ratio(self) -> float:
        """The part of the prompts' tokens that the router thought the chosen depot has."""
        return self.expected_tokens / max(1, self.asked_tokens)

    @property
    def imbalance(self) -> float:
        """The tokens of the depot that got most of them, over the mean."""
        return max(self.tokens_by_depot) * len(self.tokens_by_depot) / max(1, sum(self.tokens_by_depot))


class _Routes:
    """Chooses the depot of each request of a trace when it begins, one after the other.

    By then `heard` knows all events of the requests before, so that what is found does not depend on the speed of this
    machine. `router` gets to know them `late_requests` requests later. Without a delay they are the same.
    """

    def __init__(
        self, trace: Trace, heard: Router, router: Router, late_requests: int, changes: queue.Queue[Change]
    ) -> None:
        self._trace = trace
        self._heard = heard
        self._router = router
        self._late_requests = late_requests
        self._changes = changes
        self._late: deque[tuple[int, Change]] = deque()
        self.chosen: list[int] = []
        self.expected_tokens = 0
        self.num_unheard = 0

    def wait_for_depots(self, num_depots: int) -> None:
        """Wait until all depots answer.

        Raises: ChildFailed.
        """
        if not self._hear_until(lambda: self._heard.num_answering == num_depots, ANSWER_SECONDS):
            raise ChildFailed(f"not all depots tell their events after {ANSWER_SECONDS:g} s: {self._heard!r}")

    def __iter__(self) -> Iterator[int]:
        for prompt, output in zip(self._trace.requests, self._trace.outputs, strict=True):
            while self._late and self._late[0][0] <= len(self.chosen):
                self._router.apply(self._late.popleft()[1])
            route = self._router.route(token_ids(prompt, self._trace.block_tokens))
            self.expected_tokens += route.expected.tokens
            self.chosen.append(route.depot)
            yield route.depot
            stored = token_ids(prompt + output, self._trace.block_tokens)
            if not self._hear_until(lambda: self._has(route.depot, stored), LATEST_SECONDS):  # noqa: B023 - called here
                self.num_unheard += 1

    def _has(self, depot: int, tokens: list[int]) -> bool:
        return self._heard.matches(tokens)[depot].tokens == len(tokens)

    def _hear_until(self, is_so: Callable[[], bool], timeout_seconds: float) -> bool:
        """Take in what the depots tell until something is so. Return False if it is not so in time."""
        deadline = time.monotonic() + timeout_seconds
        while not is_so():
            try:
                change = self._changes.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            self._heard.apply(change)
            if self._router is not self._heard:
                self._late.append((len(self.chosen) + self._late_requests, change))
        return True


def play(
    trace: Trace,
    policy: PolicyName,
    *,
    num_depots: int,
    l1_chunks: int,
    late_requests: int = 0,
    on_request: Callable[[], None] = lambda: None,
) -> Played:
    """Play a trace to so many new depots, each with an L1 of so many chunks.

    Raises: ChildFailed, ReplayFailed, DepotError.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvdepot-")))
        endpoints = [
            Endpoints(events=f"ipc://{folder}/{depot}.events", replay=f"ipc://{folder}/{depot}.replay")
            for depot in range(num_depots)
        ]
        addresses = [
            stack.enter_context(server_process(*_flags(trace, l1_chunks), *_event_flags(each))) for each in endpoints
        ]
        reader = stack.enter_context(Reader(endpoints))
        router = Router(num_depots, make_policy(policy, num_depots), MODEL)
        heard = Router(num_depots, make_policy(policy, num_depots), MODEL) if late_requests else router
        routes = _Routes(trace, heard, router, late_requests, reader.changes)
        routes.wait_for_depots(num_depots)
        replayed = asyncio.run(
            replay_trace(
                addresses,
                trace.requests,
                routes,
                l1_chunks=l1_chunks,
                concurrency=1,
                block_tokens=trace.block_tokens,
                outputs=trace.outputs,
                on_request=on_request,
            )
        )
    tokens_by_depot = [0] * num_depots
    for prompt, depot in zip(trace.requests, routes.chosen, strict=True):
        tokens_by_depot[depot] += len(prompt) * trace.block_tokens
    return Played(
        asked_tokens=replayed.num_blocks * trace.block_tokens,
        found_tokens=replayed.hit_blocks * trace.block_tokens,
        expected_tokens=routes.expected_tokens,
        tokens_by_depot=tokens_by_depot,
        num_unheard=routes.num_unheard,
    )


def _flags(trace: Trace, l1_chunks: int) -> list[str]:
    l1_bytes = l1_chunks * chunk_bytes_of(trace.block_tokens)
    return ["--chunk-size", str(trace.block_tokens), "--l1-size", str(l1_bytes)]


def _event_flags(endpoints: Endpoints) -> list[str]:
    return ["--kv-events", endpoints.events, "--kv-events-replay", endpoints.replay]
