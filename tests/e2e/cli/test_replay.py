"""`replay` gets the hit ratio that its policy must have, and refuses traces that it can't play."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvdepot.cli.app import app
from kvdepot.cli.replay_node import CHUNK_BYTES, ReplayFailed
from kvdepot.cli.request_trace import BLOCK_TOKENS
from kvdepot.cli.trace_player import Replayed, replay_trace

L1_CHUNKS = 40


def conversations(num_requests: int, seed: int) -> list[list[int]]:
    """Return requests that extend an earlier one, or begin anew after a common first block; ids are prefixes."""
    rng = random.Random(seed)
    ids: dict[tuple[int, ...], int] = {}
    prompts: list[tuple[int, ...]] = [(0,)]
    for number in range(1, num_requests):
        earlier = rng.choice(prompts[-15:])
        kept = earlier[: rng.randint(1, len(earlier))]
        prompts.append((*kept, *(100 * number + i for i in range(rng.randint(0, 4))))[:20])
    return [[ids.setdefault(prompt[: i + 1], len(ids)) for i in range(len(prompt))] for prompt in prompts]


def brute_force_hits(requests: Sequence[Sequence[int]], capacity: int) -> int:
    """Count leading resident blocks with LRU eviction, which evicts the tail of a prompt before its head."""
    resident: list[int] = []  # what leaves first is first
    hits = 0
    for request in requests:
        for hash_id in request:
            if hash_id not in resident:
                break
            hits += 1
        resident = [hash_id for hash_id in resident if hash_id not in request] + list(request)[::-1]
        resident = resident[-capacity:]
    return hits


def write(path: Path, requests: Sequence[Sequence[int]]) -> Path:
    path.write_text("".join(json.dumps({"hash_ids": request}) + "\n" for request in requests), encoding="utf-8")
    return path


def replay(trace: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["replay", str(trace), *options], env={"COLUMNS": "200"})


async def play(
    address: str, requests: Sequence[tuple[int, ...]], *, l1_chunks: int, on_request: Callable[[], None] = lambda: None
) -> Replayed:
    """Play requests to one depot that runs already."""
    routes = [0] * len(requests)
    return await replay_trace([address], requests, routes, l1_chunks=l1_chunks, concurrency=1, on_request=on_request)


def test_the_hit_ratio_is_that_of_a_brute_force_model(tmp_path: Path) -> None:
    requests = conversations(num_requests=150, seed=1)
    num_blocks = sum(map(len, requests))
    hits, unlimited_hits = brute_force_hits(requests, L1_CHUNKS), brute_force_hits(requests, num_blocks)
    assert 0 < hits < unlimited_hits  # or else the trace tests nothing

    result = replay(
        write(tmp_path / "trace.jsonl", requests), "--l1-chunks", str(L1_CHUNKS), "--eviction", "lru", "--json"
    )

    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    assert (summary["hit_blocks"], summary["num_blocks"], summary["num_requests"]) == (hits, num_blocks, 150)
    assert summary["hit_ratio"] == pytest.approx(hits / num_blocks)
    assert summary["refused_blocks"] == 0
    assert summary["rpcs"]["Lookup"]["num_calls"] == 150


def test_shows_both_ratios_and_every_rpc_and_stops_at_the_limit(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.jsonl", [[0, 1], [0, 1, 2], [], [0, 1, 2, 3]])
    result = replay(trace, "--l1-chunks", "8", "--limit-requests", "3")
    assert result.exit_code == 0, result.output
    texts = ("depot, 8 chunks, eviction auto", "plain LRU, 8 blocks", "offline bound, 8 blocks", "3 requests")
    for text in (*texts, "Lookup", "Retrieve", "Store", "EndSession", "1.02 k tokens were hits: 128 MiB of KV"):
        assert text in result.stdout


def test_requests_that_are_played_at_the_same_time_get_right_bytes(tmp_path: Path) -> None:
    requests = conversations(num_requests=100, seed=2)
    trace = write(tmp_path / "trace.jsonl", requests)
    result = replay(trace, "--l1-chunks", str(2 * L1_CHUNKS), "--concurrency", "4", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["num_requests"], summary["concurrency"]) == (100, 4)
    assert 0 < summary["hit_blocks"] < summary["num_blocks"]


def test_a_malformed_trace_is_a_clear_error(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"hash_ids": [0]}\nnonsense\n', encoding="utf-8")
    result = replay(trace, "--l1-chunks", "8")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {trace}:2: not JSON")
    assert replay(tmp_path / "missing.jsonl", "--l1-chunks", "8").exit_code == 2


async def test_a_depot_of_another_size_is_refused(start_server: Any) -> None:
    server = await start_server(chunk_size=BLOCK_TOKENS, l1_size=str(8 * CHUNK_BYTES))
    with pytest.raises(ReplayFailed, match="holds 8 chunks, not 9"):
        await play(server.addresses[0], [(0,)], l1_chunks=9)


async def test_a_wrong_byte_ends_the_replay(start_server: Any) -> None:
    server = await start_server(chunk_size=BLOCK_TOKENS, l1_size=str(8 * CHUNK_BYTES), verify="off")

    def spoil() -> None:
        for start in range(0, 8 * CHUNK_BYTES, CHUNK_BYTES):
            server.memory.view[start] ^= 1

    with pytest.raises(ReplayFailed, match="request-2: the 1 blocks that came back do not hold what was stored"):
        await play(server.addresses[0], [(0,), (0,)], l1_chunks=8, on_request=spoil)
