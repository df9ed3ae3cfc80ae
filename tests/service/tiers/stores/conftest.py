"""What the tests of the stores share: L1, chunks in it, and each kind of store, started once."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from service.tiers.store import Role, Store
from tests.service.tiers.stores.chunks import L1_BYTES, Chunks
from tests.service.tiers.stores.kinds import Kind, OpenStore, StoreUnderTest


@pytest.fixture(scope="session")
def l1() -> Iterator[memoryview]:
    """The memory of L1, shared with other processes as it is in a depot."""
    memory = mmap.mmap(-1, L1_BYTES)
    with memoryview(memory) as view:
        yield view


@pytest.fixture(scope="session")
def started_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Kind], StoreUnderTest]]:
    """`started_stores(kind)` starts a kind's server once, for all tests."""
    started: dict[str, StoreUnderTest] = {}
    with ExitStack() as stack:

        def start(kind: Kind) -> StoreUnderTest:
            if kind.name not in started:
                started[kind.name] = stack.enter_context(kind.started(tmp_path_factory.mktemp(kind.name)))
            return started[kind.name]

        yield start


@pytest.fixture
def under_test(kind: Kind, started_stores: Callable[[Kind], StoreUnderTest]) -> StoreUnderTest:
    """The kind of store that the test is run with."""
    return started_stores(kind)


@pytest.fixture
def chunks(under_test: StoreUnderTest, l1: memoryview) -> Chunks:
    """Chunks in L1, and slots to read them into."""
    return Chunks(under_test, l1)


@pytest.fixture
def open_store(under_test: StoreUnderTest, l1: memoryview) -> Iterator[OpenStore]:
    """`open_store(Role.READ)` opens the store until the test ends."""
    with ExitStack() as stack:

        def opened(role: Role, *, patience_seconds: float | None = None) -> Store:
            store = under_test.open(role, l1, patience_seconds=patience_seconds)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def reader(open_store: OpenStore) -> Store:
    """The store, opened to read."""
    return open_store(Role.READ)


@pytest.fixture
def writer(open_store: OpenStore) -> Store:
    """The store, opened to write and delete."""
    return open_store(Role.WRITE)


@pytest.fixture
def asker(open_store: OpenStore) -> Store:
    """The store, opened to ask what it has."""
    return open_store(Role.ASK)
