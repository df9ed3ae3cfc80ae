"""A depot records what engines ask of it, and `replay` gets the depot's own hit ratio from the file."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvdepot import AsyncDepotClient, Credentials, token_prefix
from kvdepot.cli.replay_node import CHUNK_BYTES
from kvdepot.cli.request_trace import BLOCK_TOKENS, Trace, read_trace
from kvdepot.cli.trace_player import Replayed, replay_trace
from service.load_settings import BadSettings, load
from service.server import Server
from tests.e2e.access.calling import write_tenants
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, attach, prompt
from tests.e2e.servers import running_server
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_CHUNKS = 60  # of L1, too few for all chats
PAGE_BYTES = 4096
PAGE = replace(SMALL, shape=replace(SMALL.shape, num_heads=4))
"""A chunk of 16 tokens is a page, so that L1 holds so many chunks as replay's does."""
MOONCAKE_TRACE = os.environ.get("MOONCAKE_TRACE", "")
"""A file of https://github.com/kvcache-ai/Mooncake, such as that of conversations."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 16 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder))
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs can't be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def text_of(path: Path) -> str:
    return path.read_text()


def recorded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def lines_of(path: Path, num_lines: int) -> list[dict[str, Any]]:
    """Wait for so many lines."""
    await eventually(lambda: path.read_text().count("\n") >= num_lines)
    return recorded(path)


def chats(num_requests: int, seed: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """Yield the turns of chats that begin alike: the session, the prompt, and the prompt with its answer."""
    rng = random.Random(seed)
    system = prompt(2 * CHUNK_SIZE, seed=1000)
    histories = [list(system) for _ in range(12)]
    for number in range(num_requests):
        chat = rng.randrange(len(histories))
        if rng.random() < 0.1:
            histories[chat] = list(system)
        question = prompt(rng.randint(1, 2 * CHUNK_SIZE), seed=5000 + number)
        answer = prompt(rng.randint(1, 3 * CHUNK_SIZE), seed=9000 + number)
        asked = histories[chat] + question
        histories[chat] = (asked + answer)[: 10 * CHUNK_SIZE]
        yield f"chat-{chat}-{number}", asked, asked + answer


async def play(engine: Engine, turns: Iterator[tuple[str, list[int], list[int]]]) -> tuple[int, int]:
    """Do the work of an engine. Return how many whole chunks its lookups found, and how many they asked for."""
    found = asked = 0
    for session_id, tokens, with_answer in turns:
        answer = await engine.lookup(session_id, token_prefix(tokens))
        if answer.HasField("lease"):
            await engine.retrieve(session_id, answer.lease, answer.matched_tokens)
        kv = engine.kv(len(with_answer), seed=1)
        await engine.store(session_id, token_prefix(with_answer), kv, start_token=answer.matched_tokens)
        await engine.end_session(session_id)
        found += answer.matched_tokens // CHUNK_SIZE
        asked += len(tokens) // CHUNK_SIZE
    return found, asked


async def replay(path: Path, *options: str) -> dict[str, Any]:
    """Return what `kvdepot replay` finds."""
    command = (sys.executable, "-m", "kvdepot", "replay", str(path), "--json", *options)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    summary: dict[str, Any] = json.loads(output)
    return summary


@pytest.mark.parametrize("eviction", ["lru", "learned"])
async def test_a_recording_that_is_played_again_has_the_hits_of_the_depot(
    eviction: str, path: Path, open_site: Open
) -> None:
    flags = {"l1_size": str(PAGE_BYTES * NUM_CHUNKS), "eviction": eviction}
    site = await open_site(record_trace=str(path), **flags)
    found, asked = await play(await site.attach(PAGE), chats(150, seed=3))
    assert site.server.memory.index.num_evicted > 100
    await lines_of(path, 150)
    async with running_server({"chunk_size": CHUNK_SIZE, **flags}) as server:
        played = await replayed(server.addresses[0], read_trace(path), l1_chunks=NUM_CHUNKS)
    assert played.num_blocks == asked
    # The one that learns has its classes from times, which are not played.
    assert abs(played.hit_blocks - found) <= (0 if eviction == "lru" else 0.03 * asked)


async def test_the_command_replays_a_recording_in_its_own_blocks(path: Path, open_site: Open) -> None:
    site = await open_site(record_trace=str(path))
    found, asked = await play(await site.attach(), chats(30, seed=3))
    await lines_of(path, 30)
    summary = await replay(path, "--l1-chunks", "1000")
    assert (summary["hit_blocks"], summary["num_blocks"], summary["block_tokens"]) == (found, asked, CHUNK_SIZE)


async def test_each_turn_of_a_session_is_a_request(path: Path, open_site: Open) -> None:
    engine = await (await open_site(record_trace=str(path))).attach()
    tokens = prompt(6 * CHUNK_SIZE)
    for length in (2, 4, 6):
        await engine.lookup("chat", token_prefix(tokens[: length * CHUNK_SIZE]))
        stored = tokens[: length * CHUNK_SIZE + 8]
        await engine.store("chat", token_prefix(stored), engine.kv(len(stored), seed=1))
    await engine.end_session("chat")
    lines = await lines_of(path, 3)
    assert [line["hash_ids"] for line in lines] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert [line["output_length"] for line in lines] == [8, 8, 0]
    times = [line["timestamp"] for line in lines]
    assert times == sorted(times)


async def test_a_lookup_that_misses_and_stores_nothing_is_a_request(path: Path, open_site: Open) -> None:
    engine = await (await open_site(record_trace=str(path))).attach()
    for number in range(2):
        await engine.lookup(f"{number}", token_prefix(prompt(40)))
        await engine.end_session(f"{number}")
    lines = await lines_of(path, 2)
    assert [(line["input_length"], line["hash_ids"]) for line in lines] == [(40, [0, 1, 2]), (40, [0, 1, 2])]


async def test_ranks_of_an_instance_are_one_request(path: Path, open_site: Open) -> None:
    site = await open_site(record_trace=str(path))
    ranks = [await site.attach(instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    tokens = prompt(3 * CHUNK_SIZE)
    for number in range(2):
        await ranks[0].lookup(f"{number}", token_prefix(tokens[: 2 * CHUNK_SIZE]))
        for engine in ranks:
            await engine.store(f"{number}", token_prefix(tokens), engine.kv(len(tokens), seed=1))
        await ranks[0].end_session(f"{number}")
    lines = await lines_of(path, 2)
    assert [(line["hash_ids"], line["output_hash_ids"]) for line in lines] == [([0, 1], [2])] * 2


async def test_tenants_and_models_share_no_ids(path: Path, tmp_path: Path) -> None:
    tenants = write_tenants(tmp_path / "tenants.yaml", *({"name": name, "token": name} for name in ("red", "blue")))
    flags = {"chunk_size": CHUNK_SIZE, "tenants": tenants, "record_trace": str(path)}
    async with running_server(flags) as server:
        for token in ("red", "blue"):
            async with AsyncDepotClient(server.addresses[0], credentials=Credentials(token=token)) as client:
                for model in ("model", "other"):
                    engine = await attach(client, SMALL, instance_id="engine", model_name=model)
                    try:
                        await engine.lookup("s", token_prefix(prompt(2 * CHUNK_SIZE)))
                        await engine.end_session("s")
                    finally:
                        await engine.close()
    lines = recorded(path)
    assert [(line["tenant"], line["model"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [line["hash_ids"] for line in lines] == [[0, 1], [2, 3], [4, 5], [6, 7]]


async def test_a_recording_holds_no_token_no_key_and_no_name(path: Path, open_site: Open) -> None:
    site = await open_site(record_trace=str(path))
    engine = await site.attach(instance_id="engine-name", model_name="model-name")
    await play(engine, chats(5, seed=1))
    await lines_of(path, 5)
    text = text_of(path)
    keys = [chunk.key for chunk in site.depot.index.chunks()]
    assert keys
    assert not any(key.hex()[:8] in text or str(int.from_bytes(key[:8], "little")) in text for key in keys)
    for _, _, tokens in chats(5, seed=1):
        assert not any(str(token) in text for token in tokens if token > 100_000)
    assert not any(name in text for name in ("engine-name", "model-name", "chat-"))


async def test_a_restart_keeps_the_earlier_recording_and_replay_reads_both(path: Path) -> None:
    async def run() -> None:
        flags = {"chunk_size": BLOCK_TOKENS, "l1_size": str(8 * CHUNK_BYTES), "record_trace": str(path)}
        async with running_server(flags) as server:
            await replayed(server.addresses[0], Trace([(0, 1), (0, 1, 2)], [(), ()]), l1_chunks=8)

    await run()
    first = text_of(path)
    await run()
    assert path.with_name("trace.jsonl.1").read_text() == first
    assert [line["hash_ids"] for line in recorded(path)] == [[0, 1], [0, 1, 2]]
    both = path.with_name("both.jsonl")
    both.write_text(first + text_of(path))
    requests = read_trace(both).requests
    assert requests[:2] == [(0, 1), (0, 1, 2)]
    assert [len(each) for each in requests[2:]] == [2, 3]
    assert not {*requests[1]} & {*requests[3]}, "the two recordings gave equal ids to different blocks"


async def replayed(address: str, trace: Trace, *, l1_chunks: int) -> Replayed:
    """Play a trace to a depot."""
    return await replay_trace(
        [address],
        trace.requests,
        [0] * len(trace.requests),
        l1_chunks=l1_chunks,
        concurrency=1,
        on_request=lambda: None,
        block_tokens=trace.block_tokens,
        outputs=trace.outputs,
    )


def renamed(requests: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return requests with ids in the order of first sight."""
    names: dict[int, int] = {}
    return [[names.setdefault(each, len(names)) for each in request] for request in requests]


def conversations() -> Trace:
    """Return 300 requests: of a real trace where there is one, or made up."""
    if MOONCAKE_TRACE:
        return read_trace(Path(MOONCAKE_TRACE), max_requests=300)
    rng = random.Random(4)
    requests: list[tuple[int, ...]] = [(0,)]
    for number in range(1, 300):
        earlier = rng.choice(requests[-20:])
        kept = earlier[: rng.randint(1, len(earlier))]
        requests.append((*kept, *range(100 * number, 100 * number + rng.randint(0, 9)))[:60])
    return Trace(requests, [()] * 300)


async def test_the_recording_of_a_replayed_trace_is_that_trace(path: Path) -> None:
    trace = conversations()
    flags = {"chunk_size": BLOCK_TOKENS, "l1_size": str(1000 * CHUNK_BYTES), "record_trace": str(path)}
    async with running_server(flags) as server:
        original = await replayed(server.addresses[0], trace, l1_chunks=1000)
    lines = recorded(path)
    assert [line["hash_ids"] for line in lines] == renamed(trace.requests)
    assert [line["input_length"] for line in lines] == [BLOCK_TOKENS * len(each) for each in trace.requests]
    assert read_trace(path) == Trace([tuple(each) for each in renamed(trace.requests)], [()] * 300, BLOCK_TOKENS)
    assert original.num_requests == 300


async def test_a_disk_that_is_full_ends_the_recording_and_nothing_else(
    small_disk: Path, open_site: Open, caplog: pytest.LogCaptureFixture
) -> None:
    site = await open_site(record_trace=str(small_disk / "trace.jsonl"))
    engine = await site.attach()
    for number in range(200):
        await engine.lookup(f"{number}", token_prefix(prompt(30 * CHUNK_SIZE, seed=number)))
        await engine.end_session(f"{number}")
    await eventually(lambda: "RecordingEnded" in caplog.text)
    found, asked = await play(engine, chats(20, seed=1))
    assert 0 < found < asked
    [line] = [record for record in caplog.records if "RecordingEnded" in record.getMessage()]
    assert line.levelname == "WARNING"
    assert "No space left on device" in line.getMessage()
    assert 0 < len(recorded(small_disk / "trace.jsonl")) < 200  # each line is whole


@pytest.mark.parametrize("name", ["missing/trace.jsonl", "."])
async def test_a_file_that_can_not_be_opened_stops_the_start(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"^record_trace: "):
        Server(load({"listen": ("127.0.0.1:0",), "l1_size": "1MiB", "record_trace": str(tmp_path / name)}))


async def test_a_recording_changes_no_answer(path: Path, open_site: Open) -> None:
    answers = []
    for flags in ({}, {"record_trace": str(path)}):
        site = await open_site(l1_size=str(PAGE_BYTES * NUM_CHUNKS), eviction="lru", **flags)
        engine = await site.attach(PAGE, instance_id="engine")
        answers.append(await play(engine, chats(60, seed=5)))
    assert answers[0] == answers[1]
