"""The example of a subscriber writes a line for each retrieve of a real server, by the command of its README."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

from kvdepot import DepotClient, KvShape, SharedBuffer
from kvdepot.cli.processes import server_process
from kvdepot.layout import layouts

EXAMPLE = Path(__file__).parents[3] / "examples" / "subscriber"
SHAPE = KvShape(num_layers=1, num_blocks=8, block_size=16, num_heads=1, head_size=8, dtype="float32")
LAYOUT = layouts.NL_X_TWO_NB_BS_NH_HS


def test_each_retrieve_is_a_line(tmp_path: Path) -> None:
    (command,) = re.findall(r"^    kvdepot serve (.*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    file = tmp_path / "retrieves.csv"
    flags = [flag.replace("retrieves.csv", str(file)) for flag in shlex.split(command)]
    flags += ["--l1-size", "8MiB", "--chunk-size", "32", "--prometheus-port", "0"]
    with (
        server_process(*flags) as address,
        SharedBuffer.create(LAYOUT.size_bytes(SHAPE)) as buffer,
        DepotClient(address) as client,
        client.attach(
            instance_id="pod-1", model_name="llama", groups=[LAYOUT.from_shape(SHAPE)], regions=[buffer.region]
        ) as attachment,
    ):
        attachment.store("first", range(70), [range(5)])
        for session_id in ("second", "third"):
            found = attachment.lookup(session_id, range(70))
            attachment.retrieve(session_id, found.lease, [range(4)])
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert [row[1:4] for row in rows] == [["pod-1", "second", "64"], ["pod-1", "third", "64"]]
    assert all(float(row[5]) > 0 for row in rows)
