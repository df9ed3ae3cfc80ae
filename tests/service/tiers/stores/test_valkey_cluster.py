"""A cluster of three real nodes: chunks are found where they are, also while they move."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tiers.address.address import TierAddress
from service.tiers.store import Part, Place, Role, StoreContext, StoreError, StoreUnusable
from service.tiers.stores.valkey import ValkeyStore
from service.tiers.stores.valkey_nodes import NUM_SLOTS, hash_slot
from tests.fakes.waiting import wait_until
from tests.servers.valkey import RedisServer, is_whole, redis_cluster, redis_server

Open = Callable[..., ValkeyStore]
RECORD = b"r" * 128


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def open_store() -> Iterator[Open]:
    """`open_store(node)` opens a store that knows one node, until the test ends."""
    with ExitStack() as stack:

        def opened(node: RedisServer, options: str = "cluster=true") -> ValkeyStore:
            address = TierAddress.parse(f"valkey://127.0.0.1:{node.port}?{options}")
            store = ValkeyStore(StoreContext(address=address, role=Role.READ, l1=memoryview(b"")))
            stack.callback(store.close)
            return store

        yield opened


def part(name: bytes, data: bytes = b"a chunk") -> Part:
    return Part(Place(name), memoryview(bytearray(data)), len(data), RECORD)


def names(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def key_of(name: bytes) -> bytes:
    return b"kvdepot:" + name.hex().encode()


def owner_of(name: bytes, nodes: Sequence[RedisServer]) -> RedisServer:
    """Return the node that had the slot of a chunk when the cluster was made."""
    return nodes[hash_slot(key_of(name)) * len(nodes) // NUM_SLOTS]


def id_of(node: RedisServer) -> bytes:
    found = node.call("CLUSTER", "MYID")
    assert isinstance(found, bytes)
    return found


def num_redirections(node: RedisServer) -> int:
    """Return how often a node said that a key has moved."""
    statistics = node.call("INFO", "errorstats")
    assert isinstance(statistics, bytes)
    [*_, count] = re.findall(rb"errorstat_MOVED:count=(\d+)", statistics) or [b"0"]
    return int(count)


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 0x31C3), (b"foo", 12182), (b"bar", 5061), (b"foo{bar}zap", 5061), (b"", 0)],
)
def test_the_slot_of_a_key_is_the_published_one(key: bytes, slot: int) -> None:
    assert hash_slot(key) == slot


def test_the_slot_of_a_key_is_the_servers(nodes: Sequence[RedisServer]) -> None:
    @settings(max_examples=60)
    @given(st.text(alphabet="{}ab:", max_size=12))
    def compare(key: str) -> None:
        assert nodes[0].call("CLUSTER", "KEYSLOT", key) == hash_slot(key.encode())

    compare()


def test_chunks_are_on_all_nodes_and_found_by_any(nodes: Sequence[RedisServer], open_store: Open) -> None:
    parts = [part(name, name[-8:]) for name in names(60)]
    assert sorted(open_store(nodes[0]).write_from(parts)) == [(number, None) for number in range(60)]
    assert all(isinstance(count := node.call("DBSIZE"), int) and count > 5 for node in nodes)
    reader = open_store(nodes[2])
    read = [part(name, bytes(8)) for name in names(60)]
    assert sorted(reader.read_into(read)) == [(number, RECORD) for number in range(60)]
    assert [bytes(each.data) for each in read] == [name[-8:] for name in names(60)]
    reader.delete([Place(name) for name in names(30)])
    assert list(open_store(nodes[1]).exists(names(60))) == [False] * 30 + [True] * 30


def test_a_slot_that_moves_is_followed_while_it_moves_and_after_it(
    nodes: Sequence[RedisServer], open_store: Open
) -> None:
    stays, moves = next(  # two chunks of one slot
        (one, other)
        for one in names(200)
        for other in names(20_000)
        if one != other and hash_slot(key_of(one)) == hash_slot(key_of(other)) and owner_of(one, nodes) is nodes[0]
    )
    slot = hash_slot(key_of(moves))
    old, new = nodes[0], nodes[1]
    store = open_store(nodes[2])
    list(store.write_from([part(stays), part(moves)]))
    new.call("CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(old))
    old.call("CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(new))
    old.call("MIGRATE", "127.0.0.1", new.port, key_of(moves), 0, 5_000)

    assert list(store.exists([stays, moves])) == [True, True]
    read = [part(stays, bytes(7)), part(moves, bytes(7))]
    assert sorted(store.read_into(read)) == [(0, RECORD), (1, RECORD)]
    assert [bytes(each.data) for each in read] == [b"a chunk"] * 2
    assert sorted(store.write_from([part(moves, b"rewrite")])) == [(0, None)]
    assert new.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 1

    old.call("MIGRATE", "127.0.0.1", new.port, key_of(stays), 0, 5_000)
    for node in (new, old, nodes[2]):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", id_of(new))
    assert list(store.exists([stays, moves])) == [True, True]
    read = [part(stays, bytes(7)), part(moves, bytes(7))]
    assert sorted(store.read_into(read)) == [(0, RECORD), (1, RECORD)]
    assert bytes(read[1].data) == b"rewrite"
    redirected = num_redirections(old)
    list(store.exists([stays, moves]))
    assert num_redirections(old) == redirected  # the store knows by now


def test_a_node_that_was_dead_is_used_again(nodes: Sequence[RedisServer], open_store: Open) -> None:
    store = open_store(nodes[0])
    on_dead, on_living = (
        next(name for name in names(100) if owner_of(name, nodes) is node) for node in (nodes[2], nodes[1])
    )
    list(store.write_from([part(on_living)]))
    with nodes[2].dead():
        with pytest.raises(StoreError):
            store.exists([on_dead])
        assert list(store.exists([on_living])) == [True]
    wait_until(lambda: all(is_whole(node) for node in nodes))
    wait_until(lambda: list(store.write_from([part(on_dead)])) == [(0, None)])
    assert list(store.exists([on_dead, on_living])) == [True, True]


def test_chunks_of_a_dead_node_are_found_on_the_one_that_took_over(
    nodes: Sequence[RedisServer], open_store: Open
) -> None:
    store = open_store(nodes[0])
    name = [name for name in names(100) if owner_of(name, nodes) is nodes[2]][-1]
    assert list(store.exists([name])) == [False]
    with nodes[2].dead():
        nodes[1].call("CLUSTER", "BUMPEPOCH")  # as a replica does that takes over
        for node in nodes[:2]:
            node.call("CLUSTER", "SETSLOT", hash_slot(key_of(name)), "NODE", id_of(nodes[1]))
        with pytest.raises(StoreError):
            store.exists([name])
        assert list(store.exists([name])) == [False]
    wait_until(lambda: all(is_whole(node) for node in nodes))


def test_a_slot_that_no_node_serves_is_an_error(nodes: Sequence[RedisServer], open_store: Open) -> None:
    name = [name for name in names(100) if owner_of(name, nodes) is nodes[0]][-1]
    slot = hash_slot(key_of(name))
    nodes[0].call("CLUSTER", "DELSLOTS", slot)
    try:
        with pytest.raises(StoreError, match=f"no node of the cluster serves slot {slot}"):
            open_store(nodes[0]).exists([name])
    finally:
        nodes[0].call("CLUSTER", "ADDSLOTS", slot)
    wait_until(lambda: all(is_whole(node) for node in nodes))


def test_a_cluster_is_no_single_server(nodes: Sequence[RedisServer], open_store: Open) -> None:
    store = open_store(nodes[0], "cluster=false")
    elsewhere = next(name for name in names(100) if owner_of(name, nodes) is not nodes[0])
    with pytest.raises(StoreUnusable, match="cluster=true"):
        store.exists([elsewhere])


def test_a_single_server_is_no_cluster(open_store: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    with redis_server(tmp_path_factory.mktemp("single")) as server, pytest.raises(StoreUnusable, match="cluster=true"):
        open_store(server)
