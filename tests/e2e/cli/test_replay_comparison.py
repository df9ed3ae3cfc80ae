"""`replay` with several policies and sizes compares them, says how far it is, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvdepot.cli.offline_bound import offline_bound_hits
from kvdepot.cli.replay_options import Eviction, ReplayRun, policies
from service.l1.eviction.policy_name import PolicyName
from tests.e2e.cli.test_replay import brute_force_hits, conversations, replay, write
from tests.fakes.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
REQUESTS = conversations(num_requests=100, seed=7)
SIZES = (8, 40)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("replay") / "trace.jsonl", REQUESTS)


def sizes(*l1_chunks: int) -> list[str]:
    return [word for size in l1_chunks for word in ("--l1-chunks", str(size))]


def test_each_policy_is_played_at_each_size(trace: Path) -> None:
    result = replay(trace, *sizes(*SIZES), "--eviction", "lru", "--eviction", "lfu", "--jobs", "2", "--json")
    assert result.exit_code == 0, result.output
    runs: list[dict[str, Any]] = json.loads(result.stdout)
    assert [(run["eviction"], run["l1_chunks"]) for run in runs] == [
        (policy, size) for policy in ("lru", "lfu") for size in SIZES
    ]
    requests = list(map(tuple, REQUESTS))
    for run in runs:
        hits, size = run["hit_blocks"], run["l1_chunks"]
        assert run["num_requests"] == len(REQUESTS)
        assert run["hit_tokens"] == 512 * hits
        assert run["hit_kv_bytes"] == 131_072 * 512 * hits
        assert run["offline_bound_hit_ratio"] == pytest.approx(offline_bound_hits(requests, size) / run["num_blocks"])
        assert run["hit_ratio"] <= run["offline_bound_hit_ratio"] <= run["unlimited_hit_ratio"]
        if run["eviction"] == "lru":
            assert hits == brute_force_hits(REQUESTS, size)
    for run in runs:
        assert f"{run['eviction']}, {run['l1_chunks']} chunks: hit ratio {run['hit_ratio']:.4f}" in result.stderr
    assert "4 of 4 runs" in result.stderr


def test_tables_and_a_plot_compare_the_policies(trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plot.svg"
    options = ("--eviction", "lru", "--eviction", "lru2", "--prefill-rate", "2000", "--kv-bytes-per-token", "1024")
    result = replay(trace, *sizes(*SIZES), *options, "--plot", str(picture))
    assert result.exit_code == 0, result.output
    for text in (
        "● lru   ▲ lru2",
        "hit ratio: leading blocks that came back",
        "offline bound",
        "unlimited cache",
        "hits in tokens, and in bytes of KV",
        "seconds of prefill saved",
        "seconds of each run",
        "* is the best policy of its size",
        "20 MiB",
        "with 1 KiB of KV a token, and 2,000 tokens/s",
    ):
        assert text in result.stdout, text
    document = picture.read_text(encoding="utf-8")
    for text in (">lru<", ">lru2<", ">offline bound<", ">40<", ">20 MiB<"):
        assert text in document, text


def test_a_plot_that_can_not_be_written_does_not_lose_the_figures(trace: Path) -> None:
    (folder := trace.parent / "plot.svg").mkdir(exist_ok=True)
    refused = replay(trace, "--l1-chunks", "8", "--limit-requests", "2", "--plot", str(folder))
    assert refused.exit_code == 2, "it is a folder"
    result = replay(trace, "--l1-chunks", "8", "--limit-requests", "2", "--json", "--plot", "/proc/full.svg")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["num_requests"] == 2
    assert "error: the plot was not written" in result.stderr


def test_one_run_is_shown_alone_with_its_bound_and_has_the_same_json_as_ever(trace: Path) -> None:
    result = replay(trace, "--l1-chunks", "40", "--eviction", "lfu", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["eviction"], summary["l1_chunks"]) == ("lfu", 40)
    assert summary["saved_prefill_seconds"] > 0
    assert summary["hit_ratio"] <= summary["offline_bound_hit_ratio"]


def test_all_are_the_policies_of_the_server() -> None:
    assert list(map(str, policies([Eviction.ALL]))) == list(map(str, PolicyName))
    assert policies([Eviction.LRU, Eviction.LFU, Eviction.LRU]) == [Eviction.LRU, Eviction.LFU]


def test_a_run_survives_the_way_into_its_process() -> None:
    run = ReplayRun(
        trace="a b.jsonl", l1_chunks=8, eviction=Eviction.LFU, l2=("disk:///d",), kv_bytes_per_token=1, prefill_rate=2.5
    )
    again = ReplayRun.from_json(run.as_json())
    assert again.flags(1, 512) == run.flags(1, 512)
    assert again.name == run.name


def test_a_run_that_fails_ends_the_others_and_is_named(trace: Path) -> None:
    result = replay(trace, *sizes(8, 16), "--l2", "disk:///dev/null/{run}?size=16MiB")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: the run auto, " in result.stderr
    assert "/dev/null" in result.stderr
    assert "Traceback" not in result.stderr
    assert runs_of(os.getpid()) == []


def test_runs_do_not_share_a_disk(trace: Path, tmp_path: Path) -> None:
    refused = replay(trace, *sizes(8, 16), "--l2", f"disk://{tmp_path}/tier?size=16MiB")
    assert refused.exit_code == 2
    assert "write {run} into its folder" in refused.stderr
    played = replay(trace, *sizes(8, 16), "--l2", f"disk://{tmp_path}/{{run}}?size=16MiB", "--limit-requests", "5")
    assert played.exit_code == 0, played.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auto-16", "auto-8"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--plot", "plot.png"), "ends in .svg"),
        (("--plot", "/missing/plot.svg"), "there is no folder /missing"),
        (("--eviction", "fifo"), "'fifo' is not one of"),
        (("--prefill-rate", "0"), "equal to 0.001"),
        (("--jobs", "0"), "equal to 1"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_played(trace: Path, options: Sequence[str], complaint: str) -> None:
    result = replay(trace, "--l1-chunks", "8", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_a_pipe_can_not_be_read_for_several_runs(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = replay(pipe, *sizes(8, 16))
    assert result.exit_code == 2
    assert "more than once" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_ends_all_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    trace = write(tmp_path / "trace.jsonl", conversations(num_requests=5_000, seed=1))
    arguments = [sys.executable, "-m", "kvdepot", "replay", str(trace), *sizes(*SIZES), "--jobs", "2"]
    command = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with command:
        wait_until(lambda: depots_of(command.pid) == 2, within_seconds=60)
        processes = descendants(command.pid)
        assert len(processes) >= 4, "two runs, and a depot of each"
        command.send_signal(number)
        assert command.wait(60) not in (0, None)
        assert command.stderr is not None
        assert b"Traceback" not in command.stderr.read()
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []


def runs_of(pid: int) -> list[int]:
    return [child for child in descendants(pid) if b"replay_run" in command_line(child)]


def depots_of(pid: int) -> int:
    return sum(
        b"--l1-size" in command_line(child) and b"\0serve\0" in command_line(child) for child in descendants(pid)
    )


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    return list(_descendants(pid))


def _descendants(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _parent_of(entry) == pid:
            yield int(entry.name)
            yield from _descendants(int(entry.name))


def _parent_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # it has ended meanwhile
        return -1


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
