"""`replay` with tiers: hits that only a tier can give, several depots that share one, and tiers that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvdepot.cli.replay_node import CHUNK_BYTES
from kvdepot.cli.replay_options import WritePolicy
from service.tiers.write_policy import WritePolicy as ServersPolicy
from tests.e2e.cli.test_replay import brute_force_hits, conversations, replay, write
from tests.fakes.real_servers import needs
from tests.servers.valkey import PROGRAM, redis_server

REQUESTS = conversations(num_requests=120, seed=5)
NUM_BLOCKS = sum(map(len, REQUESTS))
L1_CHUNKS = 16
ALONE = brute_force_hits(REQUESTS, L1_CHUNKS)
ALL = brute_force_hits(REQUESTS, NUM_BLOCKS)
assert ALONE < 0.8 * ALL, "or else the trace tests nothing"


def replayed(tmp_path: Path, *options: str) -> dict[str, Any]:
    """Return the figures of a replay of the requests."""
    trace = write(tmp_path / "trace.jsonl", REQUESTS)
    result = replay(trace, "--l1-chunks", str(L1_CHUNKS), "--json", *options)
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_a_disk_behind_a_small_l1_gives_all_hits_that_there_can_be(tmp_path: Path) -> None:
    disk = f"disk://{tmp_path}/tier?size=64MiB"
    summary = replayed(tmp_path, "--l2", disk, "--l2-write", "all", "--compare-lru", str(NUM_BLOCKS))
    assert summary["hit_blocks"] == ALL
    assert summary["hit_ratio"] == summary["unlimited_hit_ratio"] == pytest.approx(ALL / NUM_BLOCKS)
    assert summary["plain_lru_hit_ratio_by_blocks"] == {str(NUM_BLOCKS): summary["hit_ratio"]}
    assert summary["islands_hit_ratio"] == pytest.approx(ALONE / NUM_BLOCKS), "the depot without the tier"
    by_tier = summary["hit_blocks_by_tier"]
    [tier] = summary["tiers"]
    assert by_tier["l2"] == tier["reads_by_outcome"]["arrived"] == ALL - by_tier["l1"] > 0
    num_chunks = len({hash_id for request in REQUESTS for hash_id in request})
    assert tier["writes_by_outcome"] == {"ok": num_chunks}
    assert summary["written_bytes"] == num_chunks * CHUNK_BYTES
    assert summary["written_bytes_per_stored_chunk"] == CHUNK_BYTES, "each chunk is stored once and written once"
    assert summary["num_cut_hits_by_reason"] == {}


def test_second_touch_writes_less_than_all(tmp_path: Path) -> None:
    disk = f"disk://{tmp_path}/tier?size=64MiB"
    summary = replayed(tmp_path, "--l2", disk)
    assert ALONE < summary["hit_blocks"] < ALL
    assert 0 < summary["written_bytes_per_stored_chunk"] < CHUNK_BYTES


def test_depots_without_a_tier_are_islands(tmp_path: Path) -> None:
    summary = replayed(tmp_path, "--nodes", "2", "--router", "round-robin", "--eviction", "lru")
    assert summary["num_requests_by_node"] == [60, 60]
    islands = sum(brute_force_hits(REQUESTS[node::2], L1_CHUNKS) for node in range(2))
    assert summary["islands_hit_ratio"] == pytest.approx(islands / NUM_BLOCKS)
    # The depot orders uses of about the same time a little differently. That shows in so small an L1.
    assert summary["hit_blocks"] == pytest.approx(islands, rel=0.03)
    assert summary["hit_blocks"] < ALL
    assert summary["tiers"] == []


@needs(PROGRAM)
def test_each_depot_finds_what_the_others_stored_in_a_shared_tier(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        tier = ("--l2", f"valkey://127.0.0.1:{server.port}", "--l2-write", "all")
        summary = replayed(tmp_path, *tier, "--nodes", "2")
        again = replayed(tmp_path, *tier, "--limit-requests", "5")
    if not summary["num_cut_hits_by_reason"]:  # on a busy machine a remote tier may answer too late
        assert summary["hit_blocks"] == ALL
    assert summary["hit_ratio"] > summary["islands_hit_ratio"]
    assert [tier["node"] for tier in summary["tiers"]] == [1, 2]
    assert all(tier["reads_by_outcome"]["arrived"] for tier in summary["tiers"])
    assert again["hit_ratio"] <= again["unlimited_hit_ratio"], "what an earlier replay left in the tier is no hit"


def test_tiers_and_nodes_are_shown(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.jsonl", [[0, 1], [2, 3], [0, 1], []])
    disks = f"disk://{tmp_path}/tier-{{node}}?size=16MiB"
    options = ("--l1-chunks", "2", "--l2", disks, "--l2-write", "all", "--nodes", "2", "--router", "round-robin")
    result = replay(trace, *options)
    assert result.exit_code == 0, result.output
    for text in (
        "2 depots, router round-robin, 2 chunks each",
        "of it from the tiers",
        "such depots with eviction lru and no tier",
        "plain LRU, 4 blocks",
        "disk",
        "requests by node: 2, 2",
        "4,096 bytes were written to tiers per chunk stored, 1.00 of a chunk",
    ):
        assert text in result.stdout
    assert sorted(path.name for path in tmp_path.glob("tier-*")) == ["tier-1", "tier-2"]


def test_one_disk_for_several_depots_is_refused(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.jsonl", [[0]])
    result = replay(trace, "--l1-chunks", "8", "--nodes", "2", "--l2", f"disk://{tmp_path}/tier?size=16MiB")
    assert result.exit_code == 2
    assert "write {node} into its folder" in result.stderr


@pytest.mark.parametrize(
    ("url", "complaint"),
    [("disc:///tmp/tier?size=16MiB", "is disk:// meant?"), ("disk:///dev/null?size=16MiB", "/dev/null")],
)
def test_a_tier_that_cannot_be_used_is_a_clear_error(tmp_path: Path, url: str, complaint: str) -> None:
    result = replay(write(tmp_path / "trace.jsonl", [[0]]), "--l1-chunks", "8", "--l2", url)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_the_policies_are_those_of_the_server() -> None:
    assert list(map(str, WritePolicy)) == list(map(str, ServersPolicy))
