"""The server as a process: its listeners, its errors at the start, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from kvdepot import Attachment, DepotClient, DepotError, KvShape, SharedBuffer
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2, cache_pb2
from service.rpc.services import SERVICES
from tests.e2e.scraping import get
from tests.e2e.servers import running_server
from tests.fakes.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "kvdepot", "serve", "--prometheus-port", "0")
CHUNK_SIZE = 16
SHAPE = KvShape(num_layers=2, num_blocks=8, block_size=4, num_heads=2, head_size=8, dtype="float32")
TIMEOUT_SECONDS = 30.0


class ServerProcess:
    """`kvdepot serve`, and its output."""

    def __init__(self, *flags: str) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
        self.process = subprocess.Popen(
            [*COMMAND, "--l1-size", "16MiB", "--chunk-size", str(CHUNK_SIZE), *flags],
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
            | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            process_group=0,
        )

    def addresses(self) -> list[str]:
        """Return its addresses as soon as it serves."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        line = json.loads(line)["message"] if line.startswith("{") else line
        assert line.startswith("kvdepot serves on "), self.said()
        return line.strip().removeprefix("kvdepot serves on ").split(", ")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(TIMEOUT_SECONDS)

    def said(self) -> str:
        """Return all of its standard error."""
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.stderr.close()


Serve = Callable[..., ServerProcess]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(*flags: str) -> ServerProcess:
            server = ServerProcess(*flags)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: that of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[list[str]]:
    """The addresses, TCP and unix, of a server for tests that only look."""
    server = ServerProcess("--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/shared.sock")
    yield server.addresses()
    server.close()


@contextmanager
def attached(client: DepotClient, instance_id: str = "engine") -> Iterator[Attachment]:
    """Attach an engine with memory."""
    with SharedBuffer.create(layouts.NL_X_TWO_NB_BS_NH_HS.size_bytes(SHAPE)) as buffer:
        group = layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE)
        with client.attach(instance_id=instance_id, model_name="m", groups=[group], regions=[buffer.region]) as rank:
            yield rank


class RunningStore:
    """An inline store that runs and waits for data."""

    def __init__(self, attachment: Attachment, has_begun: Callable[[], bool]) -> None:
        self._attachment = attachment
        self._data: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answer: Any = None
        self._thread = threading.Thread(target=self._store, daemon=True)
        self._thread.start()
        wait_until(has_begun)

    @classmethod
    def seen_by(cls, client: DepotClient, attachment: Attachment) -> RunningStore:
        """Begin a store, and wait until the depot's sessions show it."""
        return cls(attachment, lambda: any(each.session_id == "running" for each in client.list_sessions().sessions))

    def _store(self) -> None:
        try:
            self._answer = self._attachment.store_inline("running", range(CHUNK_SIZE), iter(self._data.get, None))
        except DepotError as error:
            self._answer = error

    def finish(self) -> Any:
        """Send the data; the answer, or the error."""
        self._data.put(bytes(self._attachment.chunk_bytes))
        return self.answer()

    def answer(self) -> Any:
        """Return its result."""
        self._data.put(None)
        self._thread.join(TIMEOUT_SECONDS)
        assert self._answer is not None
        return self._answer


def health(address: str, service: str = "") -> str:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def healths(address: str) -> dict[str, str]:
    """Return the status of each service by Health.List."""
    with grpc.insecure_channel(address) as channel:
        listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=TIMEOUT_SECONDS)
        name = health_pb2.HealthCheckResponse.ServingStatus.Name
        return {service: name(answer.status) for service, answer in listed.statuses.items()}


# A server that runs


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_each_service_says_that_it_is_healthy(shared: list[str], service: str) -> None:
    assert [health(address, service) for address in shared] == ["SERVING", "SERVING"]
    assert health(shared[0], "kvdepot.v1.NoService") == "NOT_FOUND"


def test_the_health_of_all_services_can_be_listed(shared: list[str]) -> None:
    assert [healths(address) for address in shared] == [dict.fromkeys(("", *SERVICES), "SERVING")] * 2


def test_reflection_describes_every_service_with_its_messages(shared: list[str]) -> None:
    with grpc.insecure_channel(shared[0]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
        pool = DescriptorPool(database)
        methods = [method for name in SERVICES for method in pool.FindServiceByName(name).methods]
        assert {"AttachInstance", "WatchEvents", "ClearCache"} <= {method.name for method in methods}
        assert "token_ids" in pool.FindMessageTypeByName("kvdepot.v1.Prefix").fields_by_name


def test_every_rpc_that_reflection_lists_is_served(shared: list[str]) -> None:
    """A servicer that lacks one answers with INTERNAL or UNIMPLEMENTED; an empty request must not."""
    with grpc.insecure_channel(shared[0]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool, codes = DescriptorPool(database), {}
        for name in database.get_services():
            for method in pool.FindServiceByName(name).methods:
                rpc: Any = channel.stream_stream(f"/{name}/{method.name}")
                call = rpc(iter([b""]), timeout=1.0)
                with suppress(grpc.RpcError):
                    list(call)
                codes[method.full_name] = call.code().name
    assert len(codes) > 15
    assert not set(codes.values()) & {"INTERNAL", "UNIMPLEMENTED", "UNKNOWN"}, codes


def test_what_is_printed_are_addresses_to_connect_to(shared: list[str], folder: Path) -> None:
    tcp, unix = shared
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", tcp)
    assert unix == f"unix:{folder}/shared.sock"


def test_both_listeners_serve_one_depot(shared: list[str]) -> None:
    tcp, unix = shared
    with (
        DepotClient(tcp) as over_tcp,
        DepotClient(unix) as over_unix,
        attached(over_unix, "by-unix"),
        attached(over_tcp, "by-tcp") as attachment,
    ):
        for client in (over_tcp, over_unix):
            assert [each.instance_id for each in client.list_instances().instances] == ["by-tcp", "by-unix"]
        attachment.store_inline("s", range(CHUNK_SIZE), bytes(attachment.chunk_bytes))
        assert over_unix.lookup("by-unix", "s", range(CHUNK_SIZE)).matched_tokens == CHUNK_SIZE


def test_other_users_may_not_connect_to_a_unix_socket(shared: list[str]) -> None:
    mode = Path(shared[1].removeprefix("unix:")).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_settings_are_logged_as_given(serve: Serve, folder: Path) -> None:
    path = folder / "group.sock"
    (address,) = serve("--listen", f"unix:{path}", "--unix-socket-mode", "660", "--lease-ttl", "90s").addresses()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with DepotClient(address) as client:
        settings = client.get_status().settings
    assert (settings["listen"], settings["unix_socket_mode"], settings["lease_ttl"]) == (address, "660", "90s")
    assert (settings["l1_size"], settings["chunk_size"]) == ("16MiB", str(CHUNK_SIZE))


def test_without_observability_it_serves_and_has_no_events_to_watch(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0", "--disable-observability")
    with DepotClient(server.addresses()[0]) as client, attached(client) as attachment:
        assert attachment.store("s", range(CHUNK_SIZE), [range(4)]).stored_tokens == CHUNK_SIZE
        assert not client.get_status().HasField("event_queue")
        with pytest.raises(DepotError) as caught:
            next(client.watch_events())
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "OBSERVABILITY_DISABLED",
    )


# A server that can't start


def assert_refuses(server: ServerProcess, *words: str) -> None:
    """Check that it does not serve, and ends with 1 and one line with the reason."""
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == b""
    assert server.exit_code() == 1, server.said()
    assert server.said().count("\n") == 1
    assert server.said().startswith("kvdepot: ")
    assert all(word in server.said() for word in words)


def test_a_port_that_is_taken_is_refused_in_one_line(serve: Serve, shared: list[str]) -> None:
    assert_refuses(serve("--listen", shared[0]), shared[0], "taken")
    assert health(shared[0]) == "SERVING"


def test_a_port_taken_by_something_else_is_refused_in_one_line(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert_refuses(serve("--listen", address), address, "taken")


def test_a_port_for_metrics_that_is_taken_is_refused_in_one_line(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert_refuses(serve("--listen", "127.0.0.1:0", "--prometheus-port", port), f"127.0.0.1:{port}", "taken")


def test_an_address_of_another_machine_is_refused_in_one_line(serve: Serve) -> None:
    assert_refuses(serve("--listen", "192.0.2.1:50051"), "192.0.2.1:50051")


def test_a_socket_in_a_folder_that_is_not_there_is_refused_in_one_line(serve: Serve, folder: Path) -> None:
    assert_refuses(serve("--listen", f"unix:{folder}/nothing/depot.sock"), f"{folder}/nothing")


def test_a_socket_where_a_file_is_is_refused_and_the_file_is_left(serve: Serve, folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    assert_refuses(serve("--listen", f"unix:{path}"), str(path), "an ordinary file")
    assert path.read_text() == "data"


def test_a_socket_that_cannot_be_made_is_reported_with_the_reason(serve: Serve, folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    long = "x" * 108
    for name, what in (("folder", "a folder"), ("link", "leads nowhere"), ("fifo", "a FIFO"), (long, "107 bytes")):
        assert_refuses(serve("--listen", f"unix:{folder}/{name}"), name, what)


def test_a_socket_that_a_depot_serves_is_refused_and_left(serve: Serve, shared: list[str]) -> None:
    assert_refuses(serve("--listen", shared[1]), shared[1])
    assert health(shared[1]) == "SERVING"


def test_more_memory_than_there_is_is_refused_in_one_line(serve: Serve) -> None:
    assert_refuses(serve("--listen", "127.0.0.1:0", "--l1-size", "512TiB"), "L1", "left")


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_work_end_and_takes_no_new_work(serve: Serve, folder: Path, number: signal.Signals) -> None:
    path = folder / f"{number.name}.sock"
    server = serve("--listen", f"unix:{path}")
    (address,) = server.addresses()
    with DepotClient(address) as client, attached(client) as attachment:
        store = RunningStore.seen_by(client, attachment)
        server.send(number)
        wait_until(lambda: attachment.draining)
        assert [health(address, service) for service in ("", *SERVICES)] == ["NOT_SERVING"] * 4
        assert healths(address) == dict.fromkeys(("", *SERVICES), "NOT_SERVING")
        assert client.get_status().state == admin_pb2.SERVER_STATE_DRAINING
        for refused in (
            lambda: client.lookup("engine", "s", range(CHUNK_SIZE)),
            lambda: client.attach(instance_id="other", model_name="m", groups=[layouts.VLLM.without_memory(SHAPE)]),
            lambda: next(client.watch_events()),
        ):
            with pytest.raises(DepotError) as caught:
                refused()
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert caught.value.retry_after_seconds is not None
        assert store.finish().stored_tokens == CHUNK_SIZE
        lost = attachment.wait_lost(TIMEOUT_SECONDS)
        assert lost is not None
        assert lost.reason == "DRAINING"
    assert server.exit_code() == 0
    assert not path.exists()
    assert "Traceback" not in server.said()


def test_what_ends_work_is_taken_while_the_depot_drains(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0")
    with DepotClient(server.addresses()[0]) as client, attached(client) as attachment:
        attachment.store("s", range(CHUNK_SIZE), [range(4)])
        lease = attachment.lookup("s", range(CHUNK_SIZE)).lease
        store = RunningStore.seen_by(client, attachment)
        server.send(signal.SIGTERM)
        wait_until(lambda: attachment.draining)
        attachment.release_lease(lease)
        assert client.get_status().num_leases == 0
        assert attachment.end_session("s").summary.end == cache_pb2.SESSION_END_REQUESTED
        assert [each.instance_id for each in client.list_instances().instances] == ["engine"]
        assert client.get_hit_curve().total.is_too_early
        store.finish()
    assert server.exit_code() == 0


def test_the_metrics_show_a_drain(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0")
    (address,) = server.addresses()
    served = re.search(r"http://([\d.:]+)/metrics", server.said())
    assert served is not None
    with DepotClient(address) as client, attached(client) as attachment:
        assert "kvdepot_draining 0.0" in get(served[1]).splitlines()
        store = RunningStore.seen_by(client, attachment)
        server.send(signal.SIGTERM)
        wait_until(lambda: attachment.draining)
        assert "kvdepot_draining 1.0" in get(served[1]).splitlines()
        store.finish()
    assert server.exit_code() == 0


def test_work_that_does_not_end_is_cut_when_the_time_is_over(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0", "--drain-timeout", "100ms")
    with DepotClient(server.addresses()[0]) as client, attached(client) as attachment:
        store = RunningStore.seen_by(client, attachment)
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert isinstance(store.answer(), DepotError)
        assert attachment.wait_lost(TIMEOUT_SECONDS) is not None


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve("--listen", "127.0.0.1:0", "--drain-timeout", "1h")
    with DepotClient(server.addresses()[0]) as client, attached(client) as attachment:
        store = RunningStore.seen_by(client, attachment)
        server.send(signal.SIGTERM)
        wait_until(lambda: attachment.draining)
        server.send(signal.SIGTERM)
        assert server.exit_code() == 1
        assert isinstance(store.answer(), DepotError)


def test_after_it_was_killed_it_starts_again_at_the_same_socket(serve: Serve, folder: Path) -> None:
    listen = f"unix:{folder}/again.sock"
    first = serve("--listen", listen)
    first.addresses()
    first.send(signal.SIGKILL)
    assert first.exit_code() == -signal.SIGKILL
    assert (folder / "again.sock").exists()
    serve("--listen", listen).addresses()
    assert health(listen) == "SERVING"


# Too much at once


async def test_calls_beyond_the_limit_are_refused_with_a_retry_delay(start_server: Any) -> None:
    server = await start_server(chunk_size=CHUNK_SIZE, max_concurrent_rpcs=1)

    def check() -> None:
        with DepotClient(server.addresses[0]) as client, attached(client) as attachment:
            store = RunningStore(attachment, lambda: len(server.depot.sessions) == 1)
            with pytest.raises(DepotError) as caught:
                attachment.lookup("s", range(CHUNK_SIZE))
            assert (caught.value.code, caught.value.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_RPCS",
            )
            assert caught.value.retry_after_seconds is not None
            assert health(server.addresses[0]) == "SERVING"
            assert store.finish().stored_tokens == CHUNK_SIZE
            assert attachment.lookup("s", range(CHUNK_SIZE)).matched_tokens == CHUNK_SIZE

    await asyncio.to_thread(check)


async def test_attachments_beyond_the_limit_are_refused_until_one_ends(start_server: Any) -> None:
    server = await start_server(chunk_size=CHUNK_SIZE, max_attachments=1)

    def check() -> None:
        with DepotClient(server.addresses[0]) as client:
            with attached(client), pytest.raises(DepotError) as caught, attached(client, "second"):
                pass
            assert (caught.value.code, caught.value.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_RPCS",
            )

            def attaches() -> bool:
                with suppress(DepotError), attached(client, "second"):
                    return True
                return False

            wait_until(attaches)

    await asyncio.to_thread(check)


async def test_a_server_that_has_stopped_leaves_no_task_and_no_thread() -> None:
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    async with running_server({"chunk_size": CHUNK_SIZE, "disable_logging": True}) as server:
        assert set(threading.enumerate()) - threads
        await asyncio.to_thread(health, server.addresses[0])
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert {name for name in left if not name.startswith("asyncio_")} == set()
    assert asyncio.all_tasks() - tasks == set()
