"""One Valkey or Redis server: who may use it, what it is called there, and how it says no."""

from __future__ import annotations

import logging
import mmap
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.tiers.address.address import TierAddress
from service.tiers.store import Part, Place, Role, StoreContext, StoreError, StoreFull, StoreUnusable
from service.tiers.stores.valkey import MAX_VALUE_BYTES, ValkeyStore
from tests.fakes.authority import Authority
from tests.servers.process import free_port
from tests.servers.valkey import RedisServer, redis_server, tls_server

Open = Callable[..., ValkeyStore]
RECORD = b"r" * 128
NAME = b"n" * 32


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    """A server with nothing in it."""
    running_server.call("FLUSHALL")
    return running_server


@pytest.fixture
def open_store() -> Iterator[Open]:
    """`open_store(address)` opens a store until the test ends."""
    with ExitStack() as stack:

        def opened(address: str, role: Role = Role.WRITE, call_seconds: float | None = None) -> ValkeyStore:
            context = StoreContext(address=TierAddress.parse(address), role=role, l1=memoryview(b""))
            store = ValkeyStore(context, call_seconds=call_seconds)
            stack.callback(store.close)
            return store

        yield opened


def part(data: bytes = b"a chunk of some bytes", record: bytes = RECORD, name: bytes = NAME) -> Part:
    return Part(Place(name), memoryview(bytearray(data)), len(data), record)


def at(server: RedisServer, options: str = "") -> str:
    return f"valkey://127.0.0.1:{server.port}{options}"


def password_file(folder: Path, password: str) -> Path:
    file = folder / f"password-{secrets.token_hex(4)}"
    file.write_text(f"{password}\n")
    return file


@pytest.fixture
def user(server: RedisServer) -> Iterator[str]:
    """A user with the password `right`, who may do what a depot does, with keys that begin with `kvdepot:`."""
    server.call("ACL", "SETUSER", "depot", "on", ">right", "~kvdepot:*", "+get", "+set", "+exists", "+unlink", "+ping")
    yield "depot"
    server.call("ACL", "DELUSER", "depot")


def test_a_user_with_a_password_needs_no_more_rights_than_the_commands_of_the_depot(
    server: RedisServer, open_store: Open, tmp_path: Path, user: str
) -> None:
    store = open_store(at(server, f"?user={user}&password_file={password_file(tmp_path, 'right')}"))
    assert list(store.write_from([part()])) == [(0, None)]
    assert list(store.exists([NAME])) == [True]
    assert list(store.read_into([part()])) == [(0, RECORD)]
    store.delete([Place(NAME)])
    assert list(store.exists([NAME])) == [False]


def test_a_wrong_password_makes_a_store_unusable(
    server: RedisServer, open_store: Open, tmp_path: Path, user: str
) -> None:
    with pytest.raises(StoreUnusable, match="WRONGPASS") as error:
        open_store(at(server, f"?user={user}&password_file={password_file(tmp_path, 'wrong')}"))
    assert "wrong" not in str(error.value).replace("WRONGPASS", "")


def test_a_missing_file_of_the_password_makes_a_store_unusable(
    server: RedisServer, open_store: Open, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnusable, match="password_file"):
        open_store(at(server, f"?password_file={tmp_path / 'nothing'}"))


def test_a_server_that_wants_a_password_makes_a_store_without_one_unusable(open_store: Open, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "secret") as server:
        with pytest.raises(StoreUnusable, match="NOAUTH"):
            open_store(at(server))
        open_store(at(server, f"?password_file={password_file(tmp_path, 'secret')}"))


def test_a_password_that_the_server_does_not_want_makes_a_store_unusable(
    server: RedisServer, open_store: Open, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnusable, match="AUTH"):
        open_store(at(server, f"?password_file={password_file(tmp_path, 'any')}"))


def test_a_password_that_changes_is_read_again(
    server: RedisServer, open_store: Open, tmp_path: Path, user: str
) -> None:
    file = password_file(tmp_path, "right")
    store = open_store(at(server, f"?user={user}&password_file={file}"))
    server.call("ACL", "SETUSER", "depot", "resetpass", ">new")
    server.call("CLIENT", "KILL", "USER", "depot")
    file.write_text("new")
    assert list(store.exists([NAME])) == [False]


def test_a_user_without_a_right_makes_a_store_unusable(
    server: RedisServer, open_store: Open, tmp_path: Path, user: str
) -> None:
    options = f"?user={user}&password_file={password_file(tmp_path, 'right')}&prefix=other:"
    with pytest.raises(StoreUnusable, match="NOPERM"):
        open_store(at(server, options)).exists([NAME])


def test_an_operator_finds_a_chunk_by_its_key(server: RedisServer, open_store: Open) -> None:
    list(open_store(at(server)).write_from([part(b"bytes")]))
    assert server.call("KEYS", "*") == [b"kvdepot:" + NAME.hex().encode()]
    assert server.call("GET", b"kvdepot:" + NAME.hex().encode()) == RECORD + b"bytes"


def test_databases_and_prefixes_keep_chunks_apart(server: RedisServer, open_store: Open) -> None:
    list(open_store(at(server, "/1?prefix=a:")).write_from([part()]))
    found = [
        list(open_store(at(server, place)).exists([NAME])) for place in ("/1?prefix=a:", "/1?prefix=b:", "?prefix=a:")
    ]
    assert found == [[True], [False], [False]]


def test_a_database_that_is_not_there_makes_a_store_unusable(server: RedisServer, open_store: Open) -> None:
    with pytest.raises(StoreUnusable, match="out of range"):
        open_store(at(server, "/99"))


def test_a_server_that_is_not_there_is_an_error_that_may_end(open_store: Open) -> None:
    with pytest.raises(StoreError, match="refused") as error:
        open_store(f"valkey://127.0.0.1:{free_port()}")
    assert not isinstance(error.value, StoreUnusable)


def test_a_server_that_accepts_and_does_not_answer_is_an_error(server: RedisServer, open_store: Open) -> None:
    with server.paused(), pytest.raises(StoreError, match="in time"):
        open_store(at(server), call_seconds=0.1)


def test_connections_that_the_server_closed_are_made_again(server: RedisServer, open_store: Open) -> None:
    store = open_store(at(server))
    list(store.write_from([part()]))
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert list(store.exists([NAME])) == [True]


def test_a_replica_that_refuses_writes_is_an_error(server: RedisServer, open_store: Open) -> None:
    store = open_store(at(server))
    server.call("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(StoreError, match="READONLY"):
            list(store.write_from([part()]))
    finally:
        server.call("REPLICAOF", "NO", "ONE")
    assert list(store.write_from([part()])) == [(0, None)]


def test_a_chunk_that_no_value_can_hold_finds_the_store_full(server: RedisServer, open_store: Open) -> None:
    with mmap.mmap(-1, MAX_VALUE_BYTES) as memory, memoryview(memory) as view:
        too_large = Part(Place(NAME), view, len(view), RECORD)
        [(number, error)] = open_store(at(server)).write_from([too_large])
        del too_large
    assert (number, type(error)) == (0, StoreFull)


def test_parts_of_a_batch_that_find_the_store_full_do_not_stop_the_others(
    server: RedisServer, open_store: Open
) -> None:
    store = open_store(at(server))
    with server.full():
        results = list(store.write_from([part(name=bytes([number]) * 32) for number in range(5)]))
    assert [number for number, _ in results] == list(range(5))
    assert {type(error) for _, error in results} == {StoreFull}


@pytest.mark.parametrize(("policy", "warns"), [("noeviction", True), ("volatile-lru", True), ("allkeys-lru", False)])
def test_a_policy_that_lets_the_server_get_full_is_warned_of(
    server: RedisServer, open_store: Open, caplog: pytest.LogCaptureFixture, policy: str, warns: bool
) -> None:
    server.call("CONFIG", "SET", "maxmemory-policy", policy)
    with caplog.at_level(logging.WARNING):
        open_store(at(server), Role.WRITE)
        open_store(at(server), Role.READ)
    assert [policy in record.getMessage() for record in caplog.records] == [True] * warns


def test_a_question_that_the_server_forbids_is_no_error(
    server: RedisServer, open_store: Open, tmp_path: Path, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_store(at(server, f"?user={user}&password_file={password_file(tmp_path, 'right')}"), Role.WRITE)
    assert caplog.records == []


def test_tls_needs_a_server_that_the_authority_signed(tmp_path: Path, open_store: Open) -> None:
    with tls_server(tmp_path) as (server, files):
        address = f"valkeys://localhost:{server.tls_port}"
        open_store(f"{address}?{files}")
        (tmp_path / "other").mkdir()
        other = Authority("other").write(tmp_path / "other")
        with pytest.raises(StoreUnusable, match="certificate verify failed"):
            open_store(f"{address}?ca_file={other}")
        with pytest.raises(StoreError):
            open_store(f"{address}?ca_file={tmp_path / 'ca.crt'}")  # the depot has no certificate
        with pytest.raises(StoreError):
            open_store(f"valkeys://localhost:{server.port}?{files}", call_seconds=0.2)  # the port without TLS
        with pytest.raises(StoreError):
            open_store(f"valkey://localhost:{server.tls_port}", call_seconds=0.2)


def test_files_of_tls_that_are_no_certificates_make_a_store_unusable(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "bad.crt").write_text("no certificate")
    for file in (tmp_path / "bad.crt", tmp_path / "missing.crt"):
        with pytest.raises(StoreUnusable, match="ca_file"):
            open_store(f"valkeys://localhost:1?ca_file={file}")
