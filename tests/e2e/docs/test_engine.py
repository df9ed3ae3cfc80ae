"""The page for authors of engines: each of its programs runs, and goes on when the depot is upgraded."""

from __future__ import annotations

import itertools
import re
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvdepot.cli.processes import ANY_PORT, child
from tests.documented import DOCUMENTED
from tests.e2e.docs.test_debugging import environment as environment
from tests.e2e.examples.test_node_client import installed as installed
from tests.fakes.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs/engine.md").read_text()
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = FENCED.findall(PAGE)
COMMANDS = [
    line.partition(" # ")
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
ADDRESS = "127.0.0.1:50051"
ENGINE_RPCS = (
    "AttachInstance",
    "DetachInstance",
    "Lookup",
    "Store",
    "Retrieve",
    "ReleaseLease",
    "StoreInline",
    "RetrieveInline",
    "EndSession",
    "PinPrefix",
    "Prefetch",
)
OF_THE_CLIENT = {
    "UNREACHABLE",
    "ATTACHMENT_ENDED",
    "INCOMPLETE_STREAM",
    "DEADLINE_EXCEEDED",
    "CLIENT_CLOSED",
    "ATTACHMENT_CLOSED",
}

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@contextmanager
def depot(address: str) -> Iterator[None]:
    """Serve a depot at an address during the block. Leaving it drains the depot, as an upgrade does."""
    flags = ("--listen", address, "--l1-size", "16MiB", "--log-level", "error", "--drain-timeout", "5s")
    with child("the depot", "-m", "kvdepot", "serve", *ANY_PORT, *flags) as server:
        next(server.lines())
        server.drain()
        yield


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def c_engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The engine in C, compiled with warnings as errors."""
    program = tmp_path_factory.mktemp("c") / "engine"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program))
    subprocess.run(["gcc", *flags, "examples/c/engine.c"], cwd=REPOSITORY, check=True)
    return str(program)


def program(number: int, tmp_path: Path, environment: dict[str, str], address: str) -> str:
    """Run a program of the page, and return its output."""
    path = tmp_path / "engine.py"
    path.write_text(PROGRAMS[number])
    command = [sys.executable, str(path), address]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def test_programs_of_the_page_do_what_it_says(environment: dict[str, str], address: str, tmp_path: Path) -> None:
    with depot(address):
        assert program(0, tmp_path, environment, address) == (
            "request-1: 0 of 600 tokens came from the depot\nrequest-2: 512 of 600 tokens came from the depot\n"
        )
        if find_spec("torch") is not None:
            stored = program(1, tmp_path, environment, address)
            assert stored == "0 tokens came from the depot, 512 are stored now\n"


def test_the_code_of_the_readme_runs_as_it_stands(environment: dict[str, str], address: str, tmp_path: Path) -> None:
    (program,) = FENCED.findall((REPOSITORY / "README.md").read_text())
    (tmp_path / "engine.py").write_text(program.replace(ADDRESS, address))
    with depot(address):
        command = [sys.executable, str(tmp_path / "engine.py")]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == (
        "request-1: prefill tokens 0 to 1000\nrequest-2: prefill tokens 768 to 1000\n",
        "",
    )


def test_numpy_engine_goes_on_without_the_depot_and_attaches_to_the_next_one(address: str) -> None:
    page: Any = types.ModuleType("page")
    exec(compile(PROGRAMS[0], "docs/engine.md", "exec"), page.__dict__)
    prompt, numbers = list(range(0, 6000, 10)), itertools.count(1)
    engine = page.Engine(address)

    def serve() -> int:
        """Serve the prompt in other blocks; return how many tokens the depot had."""
        number = next(numbers)
        block_ids = [(3 * index + 40 * number) % 128 for index in range(38)]
        num_ready: int = engine.serve(f"request-{number}", prompt, block_ids)
        in_order = engine.kv[:, :, block_ids].reshape(2, 2, -1, 2, 32)[:, :, : len(prompt)]  # layers, K and V, tokens
        assert (in_order == np.array([token % 2048 for token in prompt])[:, np.newaxis, np.newaxis]).all()
        return num_ready

    try:
        assert serve() == 0
        for _ in range(2):
            with depot(address):
                assert engine.is_attached.wait(30)
                assert serve() == 0
                assert serve() == 512
            wait_until(lambda: not engine.is_attached.is_set())
            assert serve() == 0
    finally:
        engine.stop()


@pytest.mark.parametrize("language", [pytest.param("node", marks=needs_node), pytest.param("c", marks=needs_gcc)])
def test_engine_of_another_language_goes_on_without_the_depot_and_attaches_to_the_next_one(
    language: str, environment: dict[str, str], address: str, request: pytest.FixtureRequest
) -> None:
    if language == "node":
        request.getfixturevalue("installed")
        command = ["node", "examples/node/shared_memory.js"]
    else:
        command = [request.getfixturevalue("c_engine")]
    with ExitStack() as stack:
        engine = stack.enter_context(
            subprocess.Popen(
                [*command, address],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        assert engine.stdin is not None
        assert engine.stdout is not None
        ask, answers = engine.stdin, engine.stdout

        def serve() -> str:
            ask.write("\n")
            answer = answers.readline()
            assert answer.endswith("; the blocks are right\n")
            return answer

        assert "no depot" in serve()
        for _ in range(2):
            with depot(address):
                wait_until(lambda: "retrieved 0 of 600 tokens" in serve())
                assert "retrieved 512 of 600 tokens" in serve()
            wait_until(lambda: "no depot" in serve())
        ask.close()
        assert engine.wait(30) == 0
    assert not list(Path("/dev/shm").glob(f"kvdepot-{language}-{engine.pid}"))


@needs_node
@needs_gcc
@pytest.mark.usefixtures("installed")
def test_commands_of_the_page_answer_what_it_says(environment: dict[str, str], address: str, tmp_path: Path) -> None:
    (tmp_path / "my_engine.py").write_text(PROGRAMS[2])
    paths = {
        "examples/": f"{REPOSITORY}/examples/",
        "/tmp/engine": f"{tmp_path}/engine",
        ADDRESS: address,
        "kvdepot check-engine": f"{sys.executable} -m kvdepot check-engine",
    }
    with depot(address):
        for line, _, answer in COMMANDS:
            if line.startswith("npm "):
                continue  # the fixture did it
            for written, meant in paths.items():
                line = line.replace(written, meant)
            ended = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line.replace("yes ''", "printf '\\n\\n\\n'")],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
            assert answer.strip() in ended.stdout, (line, ended.stdout)


def test_table_of_errors_has_every_reason_that_an_engine_can_get() -> None:
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.+) \|$", PAGE, re.MULTILINE)
    listed = [reason for reasons, _ in rows for reason in re.findall(r"[A-Z_]+", reasons)]
    expected = {reason for rpc in ("", *ENGINE_RPCS) for _, reason in DOCUMENTED[rpc]} | OF_THE_CLIENT
    assert sorted(listed) == sorted(expected)
