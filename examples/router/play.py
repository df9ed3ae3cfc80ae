"""Plays a trace to depots of its own, each request to the depot that the router chooses, and counts what is found."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from examples.router.connection import Endpoints
from examples.router.policies import PolicyName, make_policy
from examples.router.reader import Reader
from examples.router.router import Router
from examples.router.routes import Routes
from kvdepot.cli.processes import server_process
from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.request_trace import Trace
from kvdepot.cli.trace_player import replay_trace

MODEL = "replay"
"""The model's name in the chunks of `replay_trace`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a run. `tokens_by_depot` are the prompt tokens that the router sent to each depot.

    `expected_tokens` are those that the router thought the chosen depot has. `num_unheard` counts the requests whose
    blocks were not all told in time: the events were late, or the depot had no space for some of the blocks.
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
        l1_bytes = l1_chunks * chunk_bytes_of(trace.block_tokens)
        addresses = [
            stack.enter_context(server_process("--l1-size", str(l1_bytes), *_event_flags(each))) for each in endpoints
        ]
        reader = stack.enter_context(Reader(endpoints))
        router = Router(num_depots, make_policy(policy, num_depots), MODEL)
        heard = Router(num_depots, make_policy(policy, num_depots), MODEL) if late_requests else router
        routes = Routes(trace, heard, router, late_requests, reader.changes)
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


def _event_flags(endpoints: Endpoints) -> list[str]:
    return ["--kv-events", endpoints.events, "--kv-events-replay", endpoints.replay]
