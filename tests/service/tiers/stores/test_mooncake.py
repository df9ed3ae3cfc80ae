"""Mooncake Store beyond what all stores do: a full pool, nodes that halt or die, a master that is not there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from service.tiers.address.address import TierAddress
from service.tiers.record import ChunkRecord
from service.tiers.store import Part, Role, Store, StoreContext, StoreError, StoreFull, StoreUnusable
from service.tiers.stores.mooncake import MooncakeStore
from tests.fakes.mooncake import Master, Node, Writer, skip_without_mooncake
from tests.fakes.waiting import wait_until
from tests.service.tiers.stores.chunks import KIB, MIB, Chunks, error_of_write, has_poison, read, same_bytes, write
from tests.service.tiers.stores.mooncake_kind import MooncakeUnderTest

LENT = "64MiB"
NOBODY = TierAddress.parse("mooncake://127.0.0.1:1?segment=64MiB")
"""An address at which nothing listens."""


class Cluster:
    """A master with clients, and in most tests one node that lends memory."""

    def __init__(self, folder: Path, l1: memoryview) -> None:
        self.master = Master(folder / "master.log", client_ttl_seconds=2)
        self.clients = MooncakeUnderTest(self.master)
        self.reader = self.clients.open(Role.READ, l1)
        self.writer = self.clients.open(Role.WRITE, l1)
        self.chunks = Chunks(self.clients, l1)
        self._nodes: list[Node] = []

    def node(self) -> Node:
        """Return a new node that lends 64 MiB."""
        self._nodes.append(Node(self.master, LENT))
        return self._nodes[-1]

    def forget(self) -> None:
        """Kill the nodes, and start a new master, which knows of none. The clients find it by themselves."""
        while self._nodes:
            self._nodes.pop().kill()
        with self.master.dead():
            pass


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory, l1: memoryview) -> Iterator[Cluster]:
    skip_without_mooncake()
    started = Cluster(tmp_path_factory.mktemp("mooncake"), l1)
    yield started
    started.master.end()


@pytest.fixture
def cluster(started_cluster: Cluster, l1: memoryview) -> Iterator[Cluster]:
    started_cluster.chunks = Chunks(started_cluster.clients, l1)
    yield started_cluster
    started_cluster.forget()


def seconds_until_it_fails(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    with pytest.raises(StoreError):
        call()
    return time.monotonic() - begin


def test_a_full_pool_loses_the_oldest_chunks_and_takes_new_ones(cluster: Cluster) -> None:
    cluster.node()
    written = [cluster.chunks.new(4 * MIB) for _ in range(20)]
    for part in written:
        wait_until(partial(is_written, cluster.writer, part))  # the master evicts a little later
    parts = [cluster.chunks.to_read(part) for part in written[:2] + written[-2:]]
    records = read(cluster.reader, *parts)
    assert None in records[:2]
    assert records[-1] is not None
    assert same_bytes(parts[-1], written[-1])


def test_without_a_node_that_lends_the_store_is_full(cluster: Cluster) -> None:
    assert isinstance(error_of_write(cluster.writer, cluster.chunks.new(64 * KIB)), StoreFull)


def test_a_chunk_that_no_node_has_space_for_is_refused_and_the_others_are_written(cluster: Cluster) -> None:
    cluster.node()
    small, large, another = cluster.chunks.new(64 * KIB), cluster.chunks.new(65 * MIB), cluster.chunks.new(64 * KIB)
    results = dict(cluster.writer.write_from([small, large, another]))
    assert isinstance(results.pop(1), StoreFull)
    assert results == {0: None, 2: None}
    part = cluster.chunks.to_read(another)  # the master may have evicted the first one for the second
    assert reads(cluster.reader, part, another)


def test_a_read_from_a_halted_node_fails_and_nothing_arrives_later(cluster: Cluster) -> None:
    node = cluster.node()
    written = cluster.chunks.new(8 * MIB)
    write(cluster.writer, written)
    part, another = cluster.chunks.to_read(written), cluster.chunks.to_read(written)
    assert reads(cluster.reader, another, written)  # the first contact with a node has no bound but the I/O worker's
    with node.paused():
        assert seconds_until_it_fails(lambda: read(cluster.reader, part)) < 2
    wait_until(lambda: reads(cluster.reader, another, written))
    assert has_poison(part)


def test_a_write_to_a_halted_node_fails_and_leaves_no_chunk(cluster: Cluster) -> None:
    node = cluster.node()
    written = cluster.chunks.new(8 * MIB)
    write(cluster.writer, cluster.chunks.new(4 * KIB))
    with node.paused():
        begin = time.monotonic()
        assert isinstance(error_of_write(cluster.writer, written), StoreError)
        assert time.monotonic() - begin < 2
    part = cluster.chunks.to_read(written)
    assert read(cluster.reader, part) == [None]
    wait_until(lambda: is_written(cluster.writer, written))
    assert reads(cluster.reader, part, written)


def test_chunks_of_a_killed_node_fail_at_once_and_are_absent_when_the_master_knows(cluster: Cluster) -> None:
    node = cluster.node()
    written = cluster.chunks.new(64 * KIB)
    write(cluster.writer, written)
    part = cluster.chunks.to_read(written)
    node.kill()
    assert seconds_until_it_fails(lambda: read(cluster.reader, part)) < 1
    wait_until(lambda: is_absent(cluster.reader, part))


def test_a_node_that_leaves_takes_only_its_own_chunks_with_it(cluster: Cluster) -> None:
    leaving, _ = cluster.node(), cluster.node()
    written = [cluster.chunks.new(64 * KIB) for _ in range(40)]
    write(cluster.writer, *written)
    leaving.end()
    parts = [cluster.chunks.to_read(part) for part in written]
    kept = [number for number, record in enumerate(read(cluster.reader, *parts)) if record is not None]
    assert 0 < len(kept) < 40
    assert all(same_bytes(parts[number], written[number]) for number in kept)


def test_what_a_killed_writer_left_is_absent_and_nobody_says_that_it_was_written(cluster: Cluster) -> None:
    node = cluster.node()
    written = cluster.chunks.new(8 * MIB)
    with node.paused():
        killed = Writer(cluster.master, written.place.name)
        wait_until(lambda: cluster.clients.is_begun(written.place))
        killed.kill()
    assert read(cluster.reader, cluster.chunks.to_read(written)) == [None]
    assert "another writer began" in str(error_of_write(cluster.writer, written))


def test_a_master_that_is_not_there_is_found_out_at_once(l1: memoryview) -> None:
    skip_without_mooncake()
    with pytest.raises(StoreError, match=r"no Mooncake master at 127\.0\.0\.1:1: Connection refused"):
        MooncakeStore(StoreContext(address=NOBODY, role=Role.OWN, l1=l1))


def test_a_master_that_halts_is_found_out_within_the_bound_of_opening(cluster: Cluster, l1: memoryview) -> None:
    with cluster.master.paused():
        assert seconds_until_it_fails(lambda: cluster.master.open(Role.READ, l1)) < 5


def test_many_calls_to_a_dead_master_fail_at_once(cluster: Cluster) -> None:
    part = cluster.chunks.to_read(cluster.chunks.new(4 * KIB))
    assert read(cluster.reader, part) == [None]
    with cluster.master.dead():
        for _ in range(3):
            assert seconds_until_it_fails(lambda: read(cluster.reader, part)) < 1
    wait_until(lambda: is_absent(cluster.reader, part))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, l1: memoryview) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.store", None)
    with pytest.raises(StoreUnusable, match=r"install kvdepot\[mooncake\]"):
        MooncakeStore(StoreContext(address=NOBODY, role=Role.READ, l1=l1))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, l1: memoryview) -> None:
    package = tmp_path / "mooncake"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "store.py").write_text("raise ImportError('libibverbs.so.1: cannot open shared object file')")
    for name in ("mooncake", "mooncake.store"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StoreUnusable, match=r"libibverbs\.so\.1: cannot open .* Install libibverbs1, .* libnuma1"):
        MooncakeStore(StoreContext(address=NOBODY, role=Role.READ, l1=l1))
    del sys.modules["mooncake"]


def reads(store: Store, part: Part, written: Part) -> bool:
    with suppress(StoreError):
        [packed] = read(store, part)
        return packed is not None and ChunkRecord.unpack(packed) is not None and same_bytes(part, written)
    return False


def is_written(store: Store, part: Part) -> bool:
    return error_of_write(store, part) is None


def is_absent(store: Store, part: Part) -> bool:
    with suppress(StoreError):
        return read(store, part) == [None]
    return False
