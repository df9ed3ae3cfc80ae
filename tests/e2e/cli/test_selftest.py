"""`selftest` has an exit code for each depot: one that works, is away, refuses, or is wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from kvdepot import DepotClient
from kvdepot.cli.app import app
from kvdepot.cli.selftest import MODEL_NAME, ExitCode
from kvdepot.v1 import cache_pb2
from kvdepot.v1.cache_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from tests.fakes.authority import Authority


def selftest(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["selftest", *arguments])


@pytest.mark.parametrize("chunk_size", ["1", "48", "256"])
def test_a_depot_that_works(start_server_process: Callable[..., str], chunk_size: str) -> None:
    address = start_server_process("--l1-size", "64MiB", "--chunk-size", chunk_size)
    for _ in range(2):  # what the first has left must not be found by the second
        result = selftest("--address", address)
        assert result.exit_code == ExitCode.WORKS, result.output
    assert "retrieved the same bytes" in result.stdout
    assert result.stdout.endswith(f"{address} works\n")


def test_it_leaves_no_instance_and_no_lease(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "64MiB")
    assert selftest("--address", address).exit_code == ExitCode.WORKS
    with DepotClient(address) as client:
        status = client.get_status()
        assert (status.num_leases, status.num_sessions) == (0, 0)
        assert client.clear_cache(model_name=MODEL_NAME).num_cleared_chunks == 2


def test_no_depot(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/absent.sock"
    result = selftest("--address", address)
    assert result.exit_code == ExitCode.REFUSED
    assert result.stderr.startswith(f"error: {address}: there is no socket {tmp_path}/absent.sock\nhint: ")


def test_a_depot_that_is_still_starting(start_server_process: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    results: list[Result] = []
    asking = threading.Thread(target=lambda: results.append(selftest("--address", address, "--wait-seconds", "60")))
    asking.start()
    start_server_process("--l1-size", "64MiB", "--listen", address)
    asking.join()
    assert results[0].exit_code == ExitCode.WORKS, results[0].output


def test_a_depot_without_space(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "4KiB")
    result = selftest("--address", address)
    assert result.exit_code == ExitCode.REFUSED
    assert len(result.stderr.splitlines()) == 1


def test_a_depot_with_tls_and_tenants(start_server_process: Callable[..., str], tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "depot")
    ca, token = authority.write(tmp_path), tmp_path / "token"
    token.write_text("secret\n")
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"tenants: [{{name: red, tokens: [{{sha256: {sha256(b'secret').hexdigest()}}}]}}]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca, "--tenants", str(tenants))
    start_server_process("--l1-size", "64MiB", "--listen", address, *flags)

    client_cert, client_key = authority.issue("engine").write(tmp_path, "client")
    shown = ("--tls-cert", client_cert, "--tls-key", client_key, "--token-file", str(token))
    works = selftest("--address", address, "--tls-ca", ca, *shown)
    assert works.exit_code == ExitCode.WORKS, works.output
    named = selftest("--address", address, "--tls-ca", ca, "--tls-server-name", "localhost", *shown)
    assert named.exit_code == ExitCode.WORKS, named.output
    without_certificate = selftest("--address", address, "--tls-ca", ca, "--token-file", str(token))
    assert without_certificate.exit_code == ExitCode.REFUSED
    token.write_text("guessed")
    unknown = selftest("--address", address, "--tls-ca", ca, *shown)
    assert unknown.exit_code == ExitCode.REFUSED
    assert "TOKEN_UNKNOWN" in unknown.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tls-ca", "/none/ca.crt"), "No such file or directory: '/none/ca.crt'"),
        (("--token-file", "/none/token", "--plain-tcp"), "No such file or directory: '/none/token'"),
        (("--tls-cert", "a.crt"), "certificate_file and key_file: give both or none"),
    ],
)
def test_flags_that_can_not_be_used(flags: tuple[str, ...], message: str) -> None:
    result = selftest("--address", "depot.example:50051", *flags)
    assert result.exit_code == ExitCode.BAD_USAGE
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


class FaultyDepot(CacheServiceServicer):
    """Keeps chunks by their salt, with a fault."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._stored: dict[str, bytes] = {}
        self._prefix = cache_pb2.Prefix()
        self._gone = threading.Event()

    def AttachInstance(self, request: Any, context: grpc.ServicerContext) -> Iterator[cache_pb2.AttachInstanceResponse]:
        context.add_callback(self._gone.set)
        yield cache_pb2.AttachInstanceResponse(chunk_size=4, chunk_bytes=256)
        self._gone.wait()

    def StoreInline(self, requests: Any, context: object) -> cache_pb2.StoreInlineResponse:
        header, *pieces = requests
        self._prefix = header.header.prefix
        self._stored[self._prefix.cache_salt] = b"".join(piece.data for piece in pieces)
        stored = 4 if self._fault == "stores half" else 8
        return cache_pb2.StoreInlineResponse(stored_tokens=stored)

    def Lookup(self, request: Any, context: object) -> cache_pb2.LookupResponse:
        found = request.prefix.cache_salt in self._stored and self._fault != "forgets"
        if found or self._fault == "finds what was not stored" or (self._stored and self._fault == "mixes salts up"):
            return cache_pb2.LookupResponse(matched_tokens=8, lease=cache_pb2.Lease(lease_id="1"))
        return cache_pb2.LookupResponse()

    def RetrieveInline(self, request: Any, context: object) -> Iterator[cache_pb2.RetrieveInlineResponse]:
        data = bytearray(next(iter(self._stored.values())))
        if self._fault == "flips a bit":
            data[-1] ^= 1
        for index in range(2):
            yield cache_pb2.RetrieveInlineResponse(data=bytes(data[256 * index : 256 * (index + 1)]), chunk_index=index)

    def EndSession(self, request: Any, context: object) -> cache_pb2.EndSessionResponse:
        return cache_pb2.EndSessionResponse()


@pytest.fixture
def start_faulty() -> Iterator[Callable[[str], str]]:
    servers = []

    def start(fault: str) -> str:
        server = grpc.server(ThreadPoolExecutor(4))
        add_CacheServiceServicer_to_server(FaultyDepot(fault), server)  # type: ignore[abstract]  # the rest is not called
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def test_the_fake_without_a_fault_works(start_faulty: Callable[[str], str]) -> None:
    assert selftest("--address", start_faulty("none")).exit_code == ExitCode.WORKS


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("flips a bit", "the bytes that were retrieved are not those that were stored"),
        ("forgets", "0 tokens found, not 8"),
        ("stores half", "4 tokens stored, not 8"),
        ("finds what was not stored", "8 tokens found before it was stored, not 0"),
        ("mixes salts up", "8 tokens found with another salt, not 0"),
    ],
)
def test_a_depot_that_is_wrong(start_faulty: Callable[[str], str], fault: str, message: str) -> None:
    address = start_faulty(fault)
    result = selftest("--address", address)
    assert result.exit_code == ExitCode.WRONG, result.output
    assert result.stderr == f"error: {address}: {message}\n"
