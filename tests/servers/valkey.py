"""Debian's Redis server, which speaks what Valkey speaks: alone, and as a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.tiers.store import StoreError
from service.tiers.stores.resp import Connection, Reply, command
from service.tiers.stores.valkey_endpoint import Endpoint
from tests.fakes.authority import Authority
from tests.fakes.real_servers import found, libraries
from tests.fakes.waiting import wait_until
from tests.servers.process import ServerProcess, accepts, free_port, running

PROGRAM = "redis-server"
NUM_SLOTS = 16_384
COMMAND_SECONDS = 10.0


class RedisServer(ServerProcess):
    """A server that keeps nothing on disk, so that a restart forgets all."""

    def __init__(self, folder: Path, *options: str, tls_port: int | None = None) -> None:
        self.port = free_port()
        self.tls_port = tls_port
        program = found(PROGRAM)
        super().__init__(
            [
                *(program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)),
                *("--save", "", "--appendonly", "no", *options),
            ],
            is_ready=lambda: accepts(self.port),
            log=folder / "redis.log",
            environment=libraries(program),
        )

    def call(self, *arguments: bytes | str | int) -> Reply:
        """Send a command, and return its reply."""
        encoded = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
        connection = Connection(Endpoint(host="127.0.0.1", port=self.port))
        try:
            with connection.call(time.monotonic() + COMMAND_SECONDS):
                connection.send(command(*encoded))
                reply = connection.reply()
        finally:
            connection.close()
        if isinstance(reply, StoreError):
            raise reply
        return reply

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let the server refuse every write, during the block."""
        self.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.call("CONFIG", "SET", "maxmemory", 1)
        try:
            yield
        finally:
            self.call("CONFIG", "SET", "maxmemory", 0)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server during the block."""
    server = RedisServer(folder, *options)
    with running(server):
        yield server


@contextmanager
def tls_server(folder: Path, authority: Authority | None = None) -> Iterator[tuple[RedisServer, str]]:
    """Run a server that also has a port for TLS, and asks for certificates there. Yield it with options of an address.

    The options name the certificate of the depot, and the authority that signed both.
    """
    authority = authority or Authority()
    ca_file = authority.write(folder)
    server_cert, server_key = authority.issue("server").write(folder, "server")
    cert_file, key_file = authority.issue("depot").write(folder, "depot")
    port = free_port()
    server = RedisServer(
        folder,
        *("--tls-port", str(port), "--tls-ca-cert-file", ca_file),
        *("--tls-cert-file", server_cert, "--tls-key-file", server_key),
        tls_port=port,
    )
    with running(server):
        yield server, f"ca_file={ca_file}&cert_file={cert_file}&key_file={key_file}"


@contextmanager
def redis_cluster(folder: Path, num_nodes: int = 3) -> Iterator[Sequence[RedisServer]]:
    """Run a cluster whose nodes have equal parts of the slots, during the block."""
    with ExitStack() as stack:
        nodes = []
        for number in range(num_nodes):
            own = folder / f"node-{number}"
            own.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            nodes.append(stack.enter_context(redis_server(own, *options)))
        for number, node in enumerate(nodes):
            begin, end = NUM_SLOTS * number // num_nodes, NUM_SLOTS * (number + 1) // num_nodes
            node.call("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bus = node.call("CONFIG", "GET", "cluster-port")
            assert isinstance(bus, list)
            bus_port = bus[1]
            assert isinstance(bus_port, bytes)
            nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)
        for node in nodes:
            wait_until(lambda node=node: is_whole(node))  # type: ignore[misc]
        yield nodes


def is_whole(node: RedisServer) -> bool:
    """Return whether a node knows which node serves each slot."""
    state = node.call("CLUSTER", "INFO")
    return isinstance(state, bytes) and b"cluster_state:ok" in state
