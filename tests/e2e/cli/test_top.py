"""`top` shows what a depot does, in a terminal, as lines and as JSON, and goes on when the depot restarts."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvdepot import DepotClient, KvShape
from kvdepot.cli.app import app
from kvdepot.cli.processes import ANY_PORT, child
from kvdepot.layout import layouts
from tests.e2e.access.calling import write_tenants
from tests.fakes.waiting import wait_until

GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)
SMALL = ("--l1-size", "8MiB", "--chunk-size", "16")


def run(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["top", *arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})


@contextmanager
def busy_depot(address: str) -> Iterator[DepotClient]:
    """Attach one of two ranks, store and look up, and wait until the depot shows that."""
    with (
        DepotClient(address) as client,
        client.attach(instance_id="pod-1", model_name="llama", groups=[GROUP], world_size=2) as half,
        client.attach(instance_id="pod-2", model_name="qwen", groups=[GROUP]) as whole,
    ):
        whole.store_inline("request-1", range(32), bytes(2 * whole.chunk_bytes))
        whole.lookup("request-1", range(48))
        half.lookup("request-2", range(48))

        def is_counted() -> bool:
            buckets = client.get_activity().buckets
            num_operations = sum(each.num_operations for bucket in buckets for each in bucket.operations)
            return num_operations == 3 and buckets[-1].gauges.num_instances == 2

        wait_until(is_counted)
        yield client


def test_once_shows_the_last_minute_at_80_columns(start_server_process: Callable[..., str]) -> None:
    address = start_server_process(*SMALL)
    with busy_depot(address):
        shown, printed = run("--once", "--address", address), run("--once", "--json", "--address", address)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    for line in (
        r"hit ratio .* 33\.3 %",
        r"tokens hit .* 32 of 96",
        r"L1 filled .* of 8 MiB",
        r"missed +64 tokens: rank missing 75 %, never stored 25 %",
        r"attached +2 instances, 2 of 3 ranks",
        r"pod-1 .* llama +1 of 2, without 1",
        r"request-1 +pod-2 +2 +32 of 48 +512 B",
    ):
        assert re.search(line, shown.output), f"{line}\n{shown.output}"

    facts = json.loads(printed.stdout)
    assert facts["hit_ratio"] == pytest.approx(1 / 3)
    assert facts["missed_tokens_by_reason"] == {"rank missing": 48, "never stored": 16}
    assert facts["operations"]["store"]["num_operations"] == 1
    assert facts["gauges"]["l1_capacity_bytes"] == 8 << 20
    assert facts["busiest_sessions"][0]["session_id"] == "request-1"
    assert {each["instance_id"] for each in facts["instances"]} == {"pod-1", "pod-2"}


def test_names_from_the_wire_do_not_reach_the_terminal(start_server_process: Callable[..., str]) -> None:
    address = start_server_process(*SMALL)
    with (
        DepotClient(address) as client,
        client.attach(instance_id="\x1b[31m[bold]pod", model_name="\x1b]0;t\x07", groups=[GROUP]) as attachment,
    ):
        attachment.lookup("\x1b[2J[red]s", range(16))
        wait_until(lambda: bool(client.get_activity().busiest_sessions))
        shown = run("--once", "--address", address, columns=160)
    assert shown.exit_code == 0, shown.output
    assert r"\x1b[31m[bold]pod" in shown.output and r"\x1b[2J[red]s" in shown.output
    assert "\x1b" not in shown.output and "\x07" not in shown.output


def test_a_depot_that_never_answered_is_an_error(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/absent.sock"
    result = run("--address", address, columns=200)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {address}: ")


def test_a_depot_without_a_history_is_an_error(start_server_process: Callable[..., str]) -> None:
    result = run("--once", "--address", start_server_process(*SMALL, "--disable-activity"), columns=200)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--disable-activity" in result.stderr


@contextmanager
def depot_at(listen: str) -> Iterator[None]:
    with child("the depot", "-m", "kvdepot", "serve", "--listen", listen, *ANY_PORT, *SMALL) as server:
        assert any(listen in line for line in server.lines())
        server.drain()
        yield


def test_lines_say_since_when_no_depot_answers_and_go_on_after_a_restart(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/depot.sock"
    top = ("-m", "kvdepot", "top", "--address", address, "--interval", "0.2")
    with ExitStack() as children:
        with depot_at(address):
            facts = map(json.loads, children.enter_context(child("top", *top, "--json")).lines())
            lines = children.enter_context(child("top", *top)).lines()
            next(each for each in facts if "error" not in each)
            next(lines)
        lost = next(each for each in facts if "error" in each)
        assert lost["answered"] < lost["time"]
        assert re.search(r"no answer since \d\d:\d\d:\d\d: ", next(line for line in lines if "no answer" in line))
        with depot_at(address):
            again = next(each for each in facts if "error" not in each)
            assert again["time"] > lost["time"]
            assert next(line for line in lines if "no answer" not in line)


class Terminal:
    """A terminal of 80x24 in which `top` runs."""

    def __init__(self, address: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvdepot", "top", "--address", address, "--interval", "0.2"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def read_until(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 1 << 16).decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def terminal(start_server_process: Callable[..., str]) -> Iterator[Terminal]:
    terminal = Terminal(start_server_process(*SMALL))
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("end", "exit_code"), [("q", 0), ("\x03", 0), ("SIGTERM", 128 + signal.SIGTERM)])
def test_the_live_page_ends_and_leaves_the_terminal_as_it_was(terminal: Terminal, end: str, exit_code: int) -> None:
    terminal.read_until("hit ratio")
    assert "\x1b[?1049h" in terminal.shown, "it is not on the alternate screen"
    if end == "SIGTERM":
        terminal.process.terminate()
    else:
        terminal.press(end.encode())
    terminal.read_until("\x1b[?1049l")
    assert terminal.process.wait(timeout=20) == exit_code
    assert terminal.is_as_before()
    assert "Traceback" not in terminal.shown


def test_a_tenant_sees_top_without_what_is_for_admins(start_server_process: Callable[..., str], tmp_path: Path) -> None:
    tenants = write_tenants(tmp_path / "tenants.yaml", {"name": "red", "token": "red-token"})
    token = tmp_path / "token"
    token.write_text("red-token")
    address = start_server_process(*SMALL, "--tenants", tenants)
    shown = run("--once", "--address", address, "--token-file", str(token))
    assert shown.exit_code == 0, shown.output
    assert "attached" in shown.output
    assert "serving" not in shown.output
    other = run("--once", "--address", address, "--token-file", str(token), "--tenant", "blue", columns=200)
    assert other.exit_code == 1
    assert "only an admin sees other tenants" in other.stderr
