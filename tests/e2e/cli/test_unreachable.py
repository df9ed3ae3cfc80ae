"""A command that reaches no depot says why, with real sockets, certificates and depots, and what to do about it."""

from __future__ import annotations

import asyncio
import http.server
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from kvdepot.cli.app import app
from tests.e2e.access.calling import write_tenants
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority, Issued

COMMANDS = ("status", "sessions", "health", "selftest")
NOBODY = 65_534

Run = Callable[..., str]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("depot_options.TIMEOUT_SECONDS", "health.TIMEOUT_SECONDS", "selftest.TIMEOUT_SECONDS"):
        monkeypatch.setattr(f"kvdepot.cli.{name}", 0.3)
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"kvdepot.cli.probe.{name}", 0.2)
    monkeypatch.setattr("kvdepot.cli.tls_probe.HANDSHAKE_SECONDS", 0.2)


def explained(address: str, *options: str, command: str = "status") -> str:
    """Run a command that must fail; return what it prints behind the address."""
    result: Result = CliRunner().invoke(app, [command, "--address", address, *options])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith(f"error: {address}: ")
    assert lines[1].startswith("hint: ")
    return result.stderr.removeprefix(f"error: {address}: ")


class Quiet(http.server.BaseHTTPRequestHandler):
    """Python's HTTP server, as the page of metrics has it, without its log."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        yield listener


def at(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Accept one connection after the other, answer what comes with some bytes, and close it."""
    with listening() as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(1)
                    try:
                        connection.recv(64)
                        connection.sendall(answer)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield at(listener)
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@contextmanager
def grpc_server(issued: Issued | None = None) -> Iterator[str]:
    """Serve gRPC without any method, with a certificate if one is given; no depot starts with an expired one."""
    server = grpc.server(ThreadPoolExecutor(1))
    if issued is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(issued.key, issued.cert)]))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


# Addresses and sockets


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_a_malformed_address_from_one_where_nothing_listens(command: str) -> None:
    assert "malformed: it has no port\nhint: give foo:50051" in explained("foo", command=command)
    with listening() as listener:
        address = at(listener)
    assert "no process listens at this port\nhint: start a depot with `kvdepot serve`" in explained(
        address, command=command
    )


def test_a_name_that_does_not_resolve_is_named() -> None:
    assert "the name nowhere.invalid does not resolve" in explained("nowhere.invalid:50051")


def test_a_host_that_does_not_answer_is_told_from_one_that_refuses() -> None:
    with listening(backlog=0) as listener, ExitStack() as waiting:
        for _ in range(4):  # once its queue is full, the kernel drops what comes
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        assert "127.0.0.1 does not answer\nhint: the host is down, or a firewall" in explained(at(listener))


def test_sockets_that_no_depot_serves_are_told_apart(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path}/no" in explained(f"unix:{tmp_path}/no/depot.sock")
    assert f"there is no socket {tmp_path}/depot.sock" in explained(f"unix:{tmp_path}/depot.sock")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file is a file, and no socket" in explained(f"unix:{tmp_path}/file")
    assert f"{tmp_path} is a folder, and no socket" in explained(f"unix:{tmp_path}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert "one that has ended left it behind" in explained(f"unix:{tmp_path}/dead.sock")
    assert "the path of a socket has at most 107 bytes" in explained(f"unix:{tmp_path}/{'x' * 107}")


def test_a_socket_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "depot.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o055)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(NOBODY)
            assert "this user has no permission for the socket" in explained(f"unix:{path}")
        finally:
            os.seteuid(user)


# What listens is no depot, or does not answer


@pytest.mark.parametrize("command", COMMANDS)
def test_what_accepts_and_does_not_answer_hangs(command: str) -> None:
    with listening() as listener:
        assert "accepts connections there and does not answer\nhint: if it is a depot, it hangs" in explained(
            at(listener), command=command
        )


def test_http_servers_and_others_are_no_depots() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as metrics:
        thread = threading.Thread(target=metrics.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        for options in ((), ("--tls",)):
            shown = explained(f"127.0.0.1:{metrics.server_address[1]}", *options)
            assert "an HTTP/1 server answers there, and no depot\nhint: is this the port of the metrics?" in shown
        metrics.shutdown()
        thread.join(10)
    with answering(b"SSH-2.0-OpenSSH_9.2p1\r\n") as address:
        assert "something answers there that does not speak gRPC" in explained(address)
    with answering(b"") as address:
        assert "accepts connections there and closes them at once" in explained(address)
    with grpc_server() as address:
        assert "a gRPC server answers there, and it does not have what this command calls" in explained(address)


async def test_a_deadline_that_passes_in_a_call_is_the_depots_fault_and_not_the_networks(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("service.rpc.admin.AdminServicer.GetStatus", never)
    server = await start_server()
    shown = await asyncio.to_thread(explained, server.addresses[0])
    assert "a depot takes the connection, and did not answer the call in time\nhint: it is busy or hangs" in shown


async def test_a_depot_that_drains_says_so(start_server: StartServer) -> None:
    server = await start_server()
    server._admission.is_draining = True
    shown = await asyncio.to_thread(explained, server.addresses[0], command="sessions")
    assert "DRAINING" in shown
    assert "hint: wait for the depot that takes its place" in shown


# TLS


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> dict[str, str]:
    cert, key = authority.issue().write(tmp_path, "depot")
    return {"tls_cert": cert, "tls_key": key}


@pytest.mark.parametrize("command", COMMANDS)
async def test_one_side_alone_with_tls_is_named(
    start_server: StartServer, authority: Authority, files: dict[str, str], tmp_path: Path, command: str
) -> None:
    secured, plain = await start_server(**files), await start_server()
    shown = await asyncio.to_thread(explained, secured.addresses[0], command=command)
    assert "the depot expects TLS, and this command came without it\nhint: give --tls-ca FILE" in shown
    ca = authority.write(tmp_path)
    shown = await asyncio.to_thread(explained, plain.addresses[0], "--tls-ca", ca, command=command)
    assert "the depot speaks without TLS, and this command asked for TLS" in shown


async def test_what_is_wrong_with_the_depots_certificate_is_named(
    start_server: StartServer, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    (address,) = (await start_server(**files)).addresses
    ca, other = authority.write(tmp_path), Authority("another").write(tmp_path, "other")
    (tmp_path / "bad.pem").write_text("no certificate")
    for options, words in (
        (("--tls-ca", other), f"signed by 'authority', which is not in {other}"),
        (("--tls",), "signed by 'authority', which this system does not trust\nhint: give --tls-ca"),
        (
            ("--tls-ca", ca, "--tls-server-name", "elsewhere"),
            "not for elsewhere; the names in it are localhost, 127.0.0.1\nhint: if it is the right depot, give"
            " --tls-server-name localhost",
        ),
        (("--tls-ca", str(tmp_path / "bad.pem")), "bad.pem has no certificate in it"),
    ):
        assert words in await asyncio.to_thread(explained, address, *options)


@pytest.mark.parametrize(
    ("days", "words"), [((-5, -1), "has expired: it was valid until 20"), ((1, 5), "is not valid before 20")]
)
def test_a_certificate_of_another_time_has_its_date(
    authority: Authority, tmp_path: Path, days: tuple[float, float], words: str
) -> None:
    with grpc_server(authority.issue(days=days)) as address:
        assert words in explained(address, "--tls-ca", authority.write(tmp_path))


async def test_a_clients_certificate_is_missed_or_refused(
    start_server: StartServer, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    ca = authority.write(tmp_path)
    (address,) = (await start_server(tls_client_ca=ca, **files)).addresses
    stranger, key = Authority("another").issue().write(tmp_path, "stranger")
    _, other_key = authority.issue().write(tmp_path, "client")
    for options, words in (
        ((), "the depot asks for a client's certificate, and none was given\nhint: give --tls-cert"),
        (("--tls-cert", stranger, "--tls-key", key), f"does not accept the client's certificate {stranger}"),
        (("--tls-cert", stranger, "--tls-key", other_key), f"--tls-key {other_key} does not belong to --tls-cert"),
    ):
        assert words in await asyncio.to_thread(explained, address, "--tls-ca", ca, *options)


async def test_a_tenants_token_that_is_missing_or_wrong_is_answered_with_a_hint(
    start_server: StartServer, tmp_path: Path
) -> None:
    tenants = write_tenants(tmp_path / "tenants.json", {"name": "red", "token": "red-token"})
    (address,) = (await start_server(tenants=tenants)).addresses
    (tmp_path / "wrong").write_text("wrong")
    (tmp_path / "red").write_text("red-token")
    shown = await asyncio.to_thread(explained, address)
    assert "CREDENTIALS_MISSING" in shown
    assert "hint: give --token-file FILE" in shown
    shown = await asyncio.to_thread(explained, address, "--token-file", str(tmp_path / "wrong"))
    assert "TOKEN_UNKNOWN" in shown
    assert "hint: is it the token of this depot?" in shown
    shown = await asyncio.to_thread(explained, address, "--token-file", str(tmp_path / "red"))
    assert "ADMIN_ONLY" in shown
    assert "hint: give the token of an admin" in shown


async def test_health_asks_over_tls(
    start_server: StartServer, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    (address,) = (await start_server(**files)).addresses
    arguments = ["health", "--address", address, "--tls-ca", authority.write(tmp_path)]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert (result.exit_code, result.stdout) == (0, "SERVING\n"), result.stderr
