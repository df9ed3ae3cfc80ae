"""The commands in the documentation have the documented effect."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server

import pytest

from kvdepot import Attachment, DepotClient, KvShape
from kvdepot.cli.processes import ANY_PORT, child
from kvdepot.layout import layouts
from tests.e2e.access.calling import write_tenants
from tests.fakes.authority import Authority

REPOSITORY = Path(__file__).parents[3]
PAGES = ("README.md", "docs/debugging.md", "docs/operations.md")
ADDRESS = "127.0.0.1:50051"
SECURE_ADDRESS = "127.0.0.1:50443"
HTTP_ADDRESS = "127.0.0.1:9464"
SOCKET = "/run/kvdepot.sock"
TOKEN = "a-token"
CHUNK_SIZE = 256
COMMANDS_OF_OURS = (
    *("sessions", "status", "health", "events", "explain", "clear", "doctor", "selftest", "replay", "log-level"),
)
RUN = ("buf curl ", "curl ", "echo ", *(f"kvdepot {command} " for command in COMMANDS_OF_OURS))
STREAMS = ("WatchEvents", "events --follow")
# What the pages suppose to be there.
FILES = {
    "kvdepot.yaml": "l1_size: 16MiB\nlisten: 127.0.0.1:0\nprometheus_port: 0\n",
    "token": TOKEN,
    "prompt.json": str(list(range(600))),
    "trace.jsonl": '{"timestamp": 0, "hash_ids": [1, 2, 3]}\n{"timestamp": 1, "hash_ids": [1, 2, 4]}\n',
}


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of a page, and the comment after its `#`."""

    page: str
    line: str
    answer: str

    @property
    def exit_code(self) -> int:
        stated = re.fullmatch(r"exit code (\d+)", self.answer)
        return int(stated[1]) if stated else 0

    def run(self, environment: dict[str, str], depot: Depot) -> subprocess.Popen[str]:
        line = self.line.replace(ADDRESS, depot.address).replace(SOCKET, depot.socket)
        line = line.replace(SECURE_ADDRESS, depot.secure_address).replace(HTTP_ADDRESS, depot.http_address)
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}" if any(stream in line for stream in STREAMS) else line],
            env=environment,
            cwd=environment["HOME"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(RUN):
                    command, _, answer = line.partition(" # ")
                    found.append(Command(page, " ".join(command.split()), answer.strip()))
    return found


COMMANDS = commands()


@dataclass(frozen=True, slots=True)
class Depot:
    """A depot as the pages suppose it: `engine-0` has stored one chunk of `llama` for `request-1`.

    `secure_address` is that of another one, with TLS and tenants.
    """

    address: str
    socket: str
    secure_address: str
    http_address: str
    attachment: Attachment


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with_buf = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with_service = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    home = tmp_path_factory.mktemp("home")
    for name, content in FILES.items():
        (home / name).write_text(content)
    authority = Authority()
    authority.write(home)
    authority.issue().write(home, "depot")
    write_tenants(home / "tenants.yaml", {"name": "ops", "token": TOKEN, "admin": True})
    return {"PATH": with_buf, "PYTHONPATH": with_service, "HOME": str(home), "COLUMNS": "120"}


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """Serve a depot during the block; yield its TCP address."""
    usual = ("--listen", "127.0.0.1:0", "--l1-size", "16MiB", "--log-level", "error")
    with child("the depot", "-m", "kvdepot", "serve", *ANY_PORT, *usual, *flags) as server:
        address = next(server.lines()).removeprefix("kvdepot serves on ").split(",")[0]
        server.drain()
        yield address


@pytest.fixture
def depot(environment: dict[str, str]) -> Iterator[Depot]:
    home = environment["HOME"]
    secure = ("--tls-cert", f"{home}/depot.crt", "--tls-key", f"{home}/depot.key", "--tenants", f"{home}/tenants.yaml")
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:
        socket = f"{folder}/depot.sock"
        http_port = free_port()
        usual = ("--listen", f"unix:{socket}", "--prometheus-port", str(http_port))
        with serving(*usual) as address, serving(*secure) as secure_address:
            group = layouts.NL_X_NB_BS_HS.without_memory(
                KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
            )
            with (
                DepotClient(address) as client,
                client.attach(instance_id="engine-0", model_name="llama", groups=[group]) as attachment,
            ):
                attachment.store_inline("request-1", range(CHUNK_SIZE), bytes(attachment.chunk_bytes))
                yield Depot(address, socket, secure_address, f"127.0.0.1:{http_port}", attachment)


def test_the_commands_are_found_and_say_what_they_answer() -> None:
    assert len(COMMANDS) >= 12
    assert [command.line for command in COMMANDS if not command.answer] == []
    fenced = sum(page.read_text().count("buf curl --") for page in (REPOSITORY / page for page in PAGES))
    assert fenced == sum(command.line.startswith("buf curl --") for command in COMMANDS)


def test_every_command_answers_what_the_page_says(depot: Depot, environment: dict[str, str]) -> None:
    for command in COMMANDS:
        if any(stream in command.line for stream in STREAMS):
            continue
        process = command.run(environment, depot)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == command.exit_code, (command.line, output)
        assert command.exit_code or command.answer in output, (command.line, output)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_event_feed_shows_what_happens(depot: Depot, environment: dict[str, str], stream: str) -> None:
    (command,) = (command for command in COMMANDS if stream in command.line)
    process = command.run(environment, depot)
    assert process.stdout is not None
    seen = threading.Event()

    def store_until_seen() -> None:
        while not seen.wait(0.05):  # the feed begins when the watcher has connected
            depot.attachment.store_inline("request-2", range(CHUNK_SIZE), bytes(depot.attachment.chunk_bytes))

    thread = threading.Thread(target=store_until_seen, daemon=True)
    thread.start()
    with closing(process.stdout):
        assert any(command.answer in line for line in process.stdout)
        seen.set()
        process.terminate()
    assert process.wait(30) != 0
    thread.join()
