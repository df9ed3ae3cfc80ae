"""The example router beside real depots: what it expects of a depot is what the depot has, also after its death."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.traces import prompts_of
from examples.router.connection import Endpoints, Patience
from examples.router.index import Prompt
from examples.router.play import MODEL, play
from examples.router.policies import PolicyName, make_policy
from examples.router.reader import Reader
from examples.router.router import Router
from kvdepot.cli.lru_models import island_hits
from kvdepot.cli.processes import Child, server_child
from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.request_router import RouterName, routes
from kvdepot.cli.request_trace import BLOCK_TOKENS, Trace, token_ids
from kvdepot.cli.trace_player import replay_trace

NUM_REQUESTS = 150
L1_CHUNKS = 300
LIMIT_SECONDS = 100.0
PROMPT = (1, 2, 3)


def trace_of(*prompts: tuple[int, ...]) -> Trace:
    return Trace(list(prompts), [()] * len(prompts))


def test_a_router_finds_more_than_random_and_expects_what_is_found() -> None:
    prompts = prompts_of("agents", NUM_REQUESTS)
    played = play(trace_of(*prompts), PolicyName.PREFIX, num_depots=2, l1_chunks=L1_CHUNKS)
    by_chance = routes(prompts, RouterName.RANDOM, num_nodes=2, l1_chunks=L1_CHUNKS)
    assert played.num_unheard == 0
    assert played.expected_tokens == pytest.approx(played.found_tokens, rel=0.03)  # what leaves is told a moment later
    assert played.found_tokens > 1.2 * BLOCK_TOKENS * island_hits(prompts, by_chance, L1_CHUNKS)
    assert played.asked_tokens == BLOCK_TOKENS * sum(map(len, prompts)) == sum(played.tokens_by_depot)
    assert played.imbalance < 1.25


@contextmanager
def depot(endpoints: Endpoints) -> Iterator[tuple[Child, str]]:
    """Run a depot that publishes events, and yield its process and its address."""
    size = ("--l1-size", str(L1_CHUNKS * chunk_bytes_of(BLOCK_TOKENS)))
    events = ("--kv-events", endpoints.events, "--kv-events-replay", endpoints.replay)
    with server_child(*size, *events) as (process, addresses):
        yield process, addresses[0]


def store(address: str) -> None:
    """Store a prompt, as an engine does."""
    playing = replay_trace(
        [address], [PROMPT], [0], l1_chunks=L1_CHUNKS, concurrency=1, on_request=lambda: None, block_tokens=BLOCK_TOKENS
    )
    assert asyncio.run(playing).stored_blocks == len(PROMPT)


def test_a_killed_depot_loses_its_blocks_and_is_believed_when_it_comes_back(tmp_path: Path) -> None:
    endpoints = Endpoints(events=f"ipc://{tmp_path}/events", replay=f"ipc://{tmp_path}/replay")
    router = Router(1, make_policy(PolicyName.PREFIX, 1), MODEL)
    reader = Reader([endpoints], Patience(probe_seconds=0.1, gone_seconds=1.0))

    def hear_until(is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not is_so():
            router.apply(reader.changes.get(timeout=max(0.0, deadline - time.monotonic())))

    def expected_tokens() -> int:
        return router.matches(Prompt(token_ids(PROMPT)))[0].tokens

    with reader:
        with depot(endpoints) as (process, address):
            store(address)
            hear_until(lambda: expected_tokens() == len(PROMPT) * BLOCK_TOKENS)
            hear_until(lambda: router.num_answering == 1)
            process.kill()
            hear_until(lambda: router.num_answering == 0)
            assert expected_tokens() == 0
        with depot(endpoints) as (_, address):
            hear_until(lambda: router.num_answering == 1)
            assert expected_tokens() == 0
            store(address)
            hear_until(lambda: expected_tokens() == len(PROMPT) * BLOCK_TOKENS)


def router(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.router", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def test_the_program_prints_a_line_for_the_policy_and_one_for_all_memory_in_one_depot() -> None:
    done = router("--policy", "round_robin", "--depots", "2", "--l1-chunks", "300", "--limit-requests", "30")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "30 requests, 2 depots of 300 chunks each"
    assert lines[2].split() == ["policy", "hit", "ratio", "expected", "most", "/", "mean"]
    assert [line.split()[0] for line in lines[3:]] == ["round_robin", "one"]
    assert all(line.count("%") == 2 for line in lines[3:])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--trace", "/missing.jsonl"], "No such file"),
        (["--trace", __file__], "not JSON"),
        (["--depots", "0"], "0 is not from 1 to 64"),
        (["--late-requests", "-1"], "-1 is not 0 or more"),
        (["--policy", "nearest"], "invalid choice"),
    ],
)
def test_what_can_not_be_played_is_said_in_one_line(arguments: list[str], why: str) -> None:
    done = router(*arguments)
    assert done.returncode != 0
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
