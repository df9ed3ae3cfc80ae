"""`sessions` lists, shows and exports the operations of requests, and fails in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvdepot import Attachment, DepotClient, KvShape
from kvdepot.cli.app import app
from kvdepot.layout import layouts

GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)
HOSTILE = "\x1b[31mred[/] [bold]x\n\u202e"


@dataclass(frozen=True, slots=True)
class Depot:
    """A depot with two instances; `pod-1` has a session that `ended`, and one that is `live`."""

    address: str
    client: DepotClient
    attachment: Attachment
    other: Attachment

    def run(self, *arguments: str, columns: int = 160) -> Result:
        return run(*arguments, "--address", self.address, columns=columns)


def run(*arguments: str, columns: int = 160) -> Result:
    return CliRunner().invoke(app, ["sessions", *arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})


@pytest.fixture
def depot(start_server_process: Callable[..., str]) -> Iterator[Depot]:
    address = start_server_process("--l1-size", "8MiB", "--chunk-size", "16", "--prometheus-port", "0")
    with (
        DepotClient(address) as client,
        client.attach(instance_id="pod-1", model_name="llama", groups=[GROUP]) as attachment,
        client.attach(instance_id="pod-2", model_name="qwen", groups=[GROUP]) as other,
    ):
        attachment.store_inline("ended", range(40), bytes(2 * attachment.chunk_bytes))
        attachment.end_session("ended")
        attachment.lookup("live", range(40))
        yield Depot(address, client, attachment, other)


def assert_fails(result: Result, message: str) -> None:
    """Check that a command exits with 1 and prints one line."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.strip() == f"error: {message}"


def test_lists_what_lives_and_what_ended_the_last_that_began_first(depot: Depot) -> None:
    depot.other.lookup("elsewhere", range(40))
    listed = depot.run()
    assert listed.exit_code == 0, listed.output
    rows = [line for line in listed.output.splitlines() if "pod-" in line]
    assert ["elsewhere" in rows[0], "live" in rows[1], "ended" in rows[2]] == [True, True, True]
    assert "ended by EndSession" in rows[2]
    of_one = depot.run("--instance", "pod-2", "--json")
    assert [each["session_id"] for each in json.loads(of_one.stdout)["sessions"]] == ["elsewhere"]


def test_lists_as_many_as_it_is_asked_for_from_as_many_pages_as_it_takes(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        depot.attachment.lookup(f"s{number}", range(3))
    monkeypatch.setattr("kvdepot.cli.sessions.MAX_PAGE_SIZE", 3)
    listed = depot.run("--limit", "8", "--json")
    ids = [each["session_id"] for each in json.loads(listed.stdout)["sessions"]]
    assert ids == [f"s{number}" for number in range(9, 1, -1)]


def test_lists_tokens_hits_bytes_and_the_reasons_of_misses(depot: Depot) -> None:
    depot.attachment.lookup("live", range(5, 45))
    header, live, ended = (line for line in depot.run().output.splitlines() if line)
    assert " ".join(header.split()[5:]) == "hits prompt matched % retrieved stored moved misses model"
    assert " ".join(live.split()).endswith(" 1 of 2 80 32 40% 0 0 0 B never stored llama")
    assert " ".join(ended.split()).endswith(" 0 0 0 32 512 B llama")
    shown = depot.run("show", "pod-1", "live").output
    assert "1 of 2 lookups hit; 32 of 80 tokens matched (40%)" in shown
    assert "misses: never stored 1; the last one at token 0: the chunk was never stored" in shown
    totals = json.loads(depot.run("show", "pod-1", "live", "--json").stdout)["totals"]
    assert totals["misses"] == [{"reason": "MISS_REASON_NEVER_STORED", "num_lookups": 1}]


def test_a_terminal_of_80_columns_shows_tokens_and_misses_of_long_names(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = "cmpl-" + "0123456789abcdef" * 2
    depot.attachment.lookup(session_id, range(131_072))
    for name, value in (("FORCE_COLOR", "1"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(
        app, ["sessions", "--address", depot.address], env={"COLUMNS": "80", "TERM": "xterm"}, color=True
    )
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown.output).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(session_id[first : first + 4] in shown.output for first in range(0, len(session_id), 12))
    assert "131,072" in shown.output


def test_without_sessions_it_says_so(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB", "--prometheus-port", "0")
    assert "none" in run("--server", address).output
    exported = run("export", "--all", "--server", address)
    assert json.loads(exported.stdout)["traceEvents"] == []


def test_shows_a_session_that_ended_and_one_that_lives(depot: Depot) -> None:
    ended, live = depot.run("show", "pod-1", "ended"), depot.run("show", "pod-1", "live")
    assert ended.output.startswith("ended of pod-1, llama\nreceived ")
    assert "rank 0" in ended.output
    assert "store" in ended.output
    assert "ended by EndSession after" in ended.output
    assert "scheduler lookup" in live.output
    assert "live after" in live.output
    session = json.loads(depot.run("show", "pod-1", "ended", "--json").stdout)
    assert [each["kind"] for each in session["operations"]] == ["OPERATION_KIND_STORE"]


def test_exports_one_session_or_all_to_a_file_or_to_standard_output(depot: Depot, tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        events = json.loads(text)["traceEvents"]
        return [event["name"] for event in events if event["ph"] == "X" and event["cat"] == "kvdepot"]

    assert names(depot.run("export", "pod-1", "ended").stdout) == ["ended", "store"]
    assert names(depot.run("export", "pod-2", "--all").stdout) == []
    file = tmp_path / "trace.json"
    exported = depot.run("export", "--all", "-o", str(file))
    assert exported.stdout == ""
    assert exported.stderr == f"2 sessions are in {file}\n"
    assert names(file.read_text()) == ["ended", "store", "live", "lookup"]


def test_a_failure_is_one_line(depot: Depot, tmp_path: Path) -> None:
    assert_fails(
        depot.run("show", "pod-1", "absent", columns=40),
        f"{depot.address}: instance 'pod-1' has no session 'absent'; it may have ended",
    )
    assert_fails(
        depot.run("export", "pod-1", "absent"),
        f"{depot.address}: instance 'pod-1' has no session 'absent'; it may have ended",
    )
    assert_fails(depot.run("export", "--all", "-o", f"{tmp_path}/no/t"), f"{tmp_path}/no/t: No such file or directory")
    assert_fails(depot.run("export", "--all", "-o", str(tmp_path)), f"{tmp_path}: Is a directory")
    for arguments in (["export"], ["export", "pod-1"], ["export", "pod-1", "ended", "--all"]):
        assert_fails(depot.run(*arguments), "name INSTANCE and SESSION, or give --all")
    assert_fails(run("--address", depot.address, "show", "pod-1", "ended"), "options come after show")


@pytest.mark.parametrize("arguments", [(), ("show", "i", "s"), ("export", "i", "s"), ("export", "--all")])
def test_without_a_depot_it_says_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    address = f"unix:{tmp_path}/absent.sock"
    result = run(*arguments, "--address", address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {address}: there is no socket {tmp_path}/absent.sock\nhint: ")


def test_names_from_the_wire_reach_neither_the_terminal_nor_its_markup(depot: Depot) -> None:
    depot.attachment.lookup(HOSTILE, range(3))
    shown = r"\x1b[31mred[/] [bold]x\n\u202e"
    for arguments in ((), ("show", "pod-1", HOSTILE), ("export", "--all"), ("show", "pod-1", HOSTILE + "no")):
        result = depot.run(*arguments)
        assert result.exit_code == (1 if HOSTILE + "no" in arguments else 0), result.output
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
        assert shown in result.output.replace("\\\\", "\\")
