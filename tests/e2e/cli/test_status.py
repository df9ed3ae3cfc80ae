"""`status` shows a depot that runs, and says in one line that none does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from typer.testing import CliRunner

from kvdepot import DepotClient, KvShape, SharedBuffer
from kvdepot.cli.app import app
from kvdepot.layout import layouts

SHAPE = KvShape(num_layers=2, num_blocks=8, block_size=16, num_heads=2, head_size=16, dtype="float16")


def test_shows_tiers_and_instances(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB", "--chunk-size", "32")
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    size_bytes = layout.size_bytes(SHAPE)
    with SharedBuffer.create(size_bytes) as buffer, DepotClient(address) as client:
        group = layout.from_shape(SHAPE)
        with client.attach(
            instance_id="pod-1", model_name="llama", model_revision="v7", groups=[group], regions=[buffer.region]
        ) as attachment:
            attachment.store("request-1", range(70), [range(5)])

            shown = CliRunner().invoke(app, ["status", "--address", address], env={"COLUMNS": "160"})
            printed = CliRunner().invoke(app, ["status", "--address", address, "--json"])

    assert shown.exit_code == 0, shown.output
    for text in ("serving", "pod-1", "llama", "v7", "0 of 1", "8 MiB", "evicted chunks", "0 chunks"):
        assert text in shown.output
    answers = json.loads(printed.stdout)
    assert answers["status"]["depot_incarnation"] == attachment.depot_incarnation != ""
    assert attachment.depot_incarnation in shown.output
    (tier,) = answers["status"]["tiers"]
    assert (tier["num_chunks"], tier["capacity_bytes"]) == ("2", str(8 << 20))
    (instance,) = answers["instances"]["instances"]
    assert instance["instance_id"] == "pod-1"
    assert instance["num_sessions"] == 1
    assert instance["ranks"][0]["mapped_bytes"] == str(size_bytes)


def test_says_how_many_readers_of_kv_events_there_are_and_where(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB", "--kv-events", "tcp://127.0.0.1:0")

    def shown() -> str:
        return CliRunner().invoke(app, ["status", "--address", address], env={"COLUMNS": "160"}).output

    printed = json.loads(CliRunner().invoke(app, ["status", "--address", address, "--json"]).stdout)
    events = printed["status"]["kv_events"]["address"]
    assert f"0 subscriptions on {events}, 0 batches" in shown()
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.connect(events)
        reader.subscribe(b"kv@")
        while f"1 subscription on {events}" not in shown():
            time.sleep(0.1)  # the test's timeout ends this
    while f"0 subscriptions on {events}" not in shown():
        time.sleep(0.1)


def test_names_from_the_wire_do_not_reach_the_terminal(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "8MiB", "--prometheus-port", "0")
    group = layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(SHAPE)
    with (
        DepotClient(address) as client,
        client.attach(instance_id="\x1b[31m[bold]pod", model_name="\x1b]0;title\x07", groups=[group]),
    ):
        shown = CliRunner().invoke(app, ["status", "--address", address], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert r"\x1b[31m[bold]pod" in shown.output
    assert "\x1b" not in shown.output
    assert "\x07" not in shown.output


def test_without_a_depot_it_says_so(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/absent.sock"
    result = CliRunner().invoke(app, ["status", "--address", address], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {address}: there is no socket {tmp_path}/absent.sock\nhint: ")
