"""The comparison of tiers: a rate counts only bytes that came from the tier, and no failure hangs it or ends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peer import shapes, tiers
from benchmarks.peer.depot import Ids
from benchmarks.peer.processes import Driver, PeerFailed, Process
from benchmarks.peer.tier_sides import PeerSide, RoundFailed
from benchmarks.peer.tier_stores import Store, read_bytes

TOKENS = 512
BLOCKS = (np.arange(32), np.arange(32, 64))
ENGINE = """
    import sys
    from benchmarks.peer import answering

    class Engine:
        def fetch(self, tokens, blocks):
            return {"seconds": 2.0, "found_tokens": len(tokens)}

    answering.serve(Engine(), sys.stdin, answering.own_output())
"""


@dataclass
class FakeSide:
    """A side whose tier takes all chunks at once, and fails to deliver as often as it is set up to."""

    failures: int = 0
    is_stuck: bool = False
    num_written: int = 0
    fetched: list[list[int]] = field(default_factory=list)

    async def fill(self, blocks: Ids) -> None: ...

    async def store(self, tokens: Ids, blocks: Ids) -> float:
        if not self.is_stuck:
            self.num_written += len(tokens) // shapes.CHUNK_SIZE
        return 0.0

    async def count(self) -> int:
        return self.num_written

    async def forget(self) -> None: ...

    async def fetch(self, tokens: Ids, blocks: Ids) -> float:
        self.fetched.append(list(tokens))
        if len(self.fetched) <= self.failures:
            raise RoundFailed("a chunk was late")
        return 0.5

    async def check(self, blocks: Ids, other_blocks: Ids) -> None: ...

    async def miss(self, num_tokens: int, clients: int, seconds: float) -> float:
        return 1.0


@dataclass
class FakeStore:
    """A store that counts how often it was cleared. Each look at what it delivered says so many bytes more."""

    bytes_a_fetch: int = 0
    delivered: int = 0
    num_clears: int = 0

    def clear(self) -> None:
        self.num_clears += 1

    def deliver(self, pid: int) -> int:
        self.delivered += self.bytes_a_fetch
        return self.delivered

    @property
    def store(self) -> Store:
        return Store(url="", adapter={}, name="fake", count=lambda: 0, delivered_bytes=self.deliver, clear=self.clear)


@pytest.fixture
def driver() -> Iterator[Driver]:
    code = "\n".join(line.removeprefix("    ") for line in ENGINE.splitlines())
    process = Process("the engine", "-c", code, variables={}, answers=True, python=Path(sys.executable))
    yield Driver(process)
    process.end()


async def test_a_round_with_a_late_chunk_is_done_again_with_new_prompts_and_has_no_rate() -> None:
    side, store = FakeSide(failures=1), FakeStore()
    rates = await tiers.moved(side, store.store, TOKENS, BLOCKS)
    assert rates.read == [TOKENS * shapes.TOKEN_BYTES / 1e9 / 0.5] * 2
    assert len(rates.write) == 2
    assert side.fetched[0] not in side.fetched[1:]
    assert store.num_clears == 2


async def test_a_side_that_never_delivers_ends_the_case() -> None:
    side, store = FakeSide(failures=100), FakeStore()
    with pytest.raises(RoundFailed, match="late"):
        await tiers.moved(side, store.store, TOKENS, BLOCKS)
    assert store.num_clears == len(side.fetched) == tiers.MAX_TRIES


async def test_a_write_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "WRITTEN_SECONDS", 0.1)
    with pytest.raises(RoundFailed, match=r"0 of 2 chunks were written in 0\.1 s"):
        await tiers.write_seconds(FakeSide(is_stuck=True), np.arange(TOKENS), BLOCKS[0])


async def test_a_peer_that_fails_is_named_and_the_next_case_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def failing() -> Iterator[Store]:
        raise PeerFailed("the server: it does not listen")
        yield

    monkeypatch.setattr(tiers, "STORES", {"disk": failing})
    assert await tiers.measure() == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"not measured: disk, {n:,} tokens: the server: it does not listen" for n in tiers.TOKENS]


@pytest.mark.parametrize(("missing_bytes", "is_whole"), [(0, True), (1, False)])
async def test_bytes_of_the_peer_that_did_not_come_from_its_tier_have_no_rate(
    driver: Driver, missing_bytes: int, is_whole: bool
) -> None:
    fake = FakeStore(bytes_a_fetch=TOKENS * shapes.TOKEN_BYTES - missing_bytes)
    side = PeerSide(driver, 0, fake.store)
    if is_whole:
        assert await side.fetch(np.arange(TOKENS), BLOCKS[0]) == 2.0
    else:
        with pytest.raises(RoundFailed, match="came from the tier"):
            await side.fetch(np.arange(TOKENS), BLOCKS[0])


def test_bytes_that_a_process_reads_from_files_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "chunk.data"
    file.write_bytes(bytes(1 << 20))
    command = "import pathlib, sys; pathlib.Path(sys.argv[1]).read_bytes(); print('read', flush=True); input()"
    process = Process("the reader", "-c", command, str(file), variables={}, answers=True, python=Path(sys.executable))
    try:
        process.line(10.0)
        assert read_bytes(process.pid) >= 1 << 20
    finally:
        process.end()
