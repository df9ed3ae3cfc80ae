"""The harness of eviction policies finds the hits of a model, and its traces are always the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.policies import Player, play, table
from benchmarks.traces import TRACES, lines_of, main, prompts_of
from kvdepot.cli.lru_models import PrefixLru, unlimited_hits
from kvdepot.cli.offline_bound import offline_bound_hits
from kvdepot.cli.request_trace import read_trace
from service.l1.eviction.policy_name import PolicyName
from service.l1.keys import ChunkKey

NUM_REQUESTS = 600


@pytest.mark.parametrize("name", TRACES)
def test_lru_has_the_hits_of_the_model_and_no_policy_more_than_the_bound(name: str) -> None:
    requests = prompts_of(name, NUM_REQUESTS)
    model = PrefixLru(500)
    expected = sum(map(model.request, requests))
    bound = offline_bound_hits(requests, 500)
    for policy in PolicyName:
        played = play(policy, 500, requests)
        assert played.hit_blocks <= bound
        if policy is PolicyName.LRU:
            assert played.hit_blocks == pytest.approx(expected, rel=0.02, abs=20), "ages are rounded"
        everything = play(policy, 50_000, requests)
        assert everything.hit_blocks == unlimited_hits(requests)


def test_the_index_stays_sound_and_full() -> None:
    player = Player(PolicyName.AUTO, 100)
    for prompt in prompts_of("mix", 300):
        player.request([ChunkKey(b"%032d" % block) for block in prompt])
    player.index.check()
    assert player.index.num_resident == 100


@pytest.mark.parametrize("name", TRACES)
def test_an_invented_trace_is_the_same_each_time_and_replay_can_read_it(name: str, tmp_path: Path) -> None:
    prompts = prompts_of(name, NUM_REQUESTS)
    assert prompts == prompts_of(name, NUM_REQUESTS)
    assert len(prompts) == NUM_REQUESTS
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(lines_of(prompts)), encoding="utf-8")
    assert read_trace(path).requests == prompts
    first = json.loads(path.read_text().splitlines()[0])
    assert first["input_length"] == 512 * len(prompts[0])


@pytest.mark.parametrize("name", TRACES)
def test_an_id_always_stands_for_the_same_blocks_before_it(name: str) -> None:
    before: dict[int, tuple[int, ...]] = {}
    for prompt in prompts_of(name, NUM_REQUESTS):
        for position, block in enumerate(prompt):
            assert before.setdefault(block, prompt[:position]) == prompt[:position]


def test_traces_are_written_by_name(tmp_path: Path) -> None:
    path = tmp_path / "scan.jsonl"
    main(["scan", str(path)])
    assert len(read_trace(path).requests) == 3_000
    with pytest.raises(SystemExit, match="usage"):
        main(["unknown", str(path)])


def test_a_table_marks_the_best_policy_and_has_the_bounds(tmp_path: Path) -> None:
    trace = tmp_path / "scan.jsonl"
    trace.write_text("".join(lines_of(prompts_of("scan", 1_500))), encoding="utf-8")
    with ThreadPoolExecutor(1) as pool:
        text = table(str(trace), [4_000, 20_000], [PolicyName.LRU], pool)
    assert "scan.jsonl: 1,500 requests of 30,000 blocks" in text
    assert "| `lru` | **0.0000** | **0.6000** |" in text
    assert "| offline bound | 0.2667 | 0.6000 |" in text
    assert "| unlimited cache | 0.6000 | 0.6000 |" in text
