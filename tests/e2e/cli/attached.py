"""A depot in a process of its own, an inline engine attached to it, and commands that are run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from kvdepot import Attachment, DepotClient, KvShape
from kvdepot.cli.app import app
from kvdepot.cli.processes import server_process
from kvdepot.layout import layouts

CHUNK_SIZE = 16
CLIENT = Path(__file__).parents[3] / "clients" / "python"
GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)
BUFFERED = {**os.environ, "PYTHONPATH": str(CLIENT), "PYTHONUNBUFFERED": ""}
"""The environment of a user, in whose pipes Python's standard output waits until a buffer is full."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The depot's address, a client of it, and the engine `pod-1`, whose model is `llama`."""

    address: str
    client: DepotClient
    attachment: Attachment

    def run(self, *arguments: str, stdin: str | None = None, **variables: str) -> Result:
        """Run a command in this process, without a terminal."""
        given = [*arguments, "--address", self.address]
        return CliRunner().invoke(app, given, input=stdin, env={"COLUMNS": "80", "TERM": "xterm", **variables})

    def store(self, num_chunks: int, session_id: str = "s") -> None:
        """Store a prompt of so many chunks, whose token ids count from 0."""
        data = bytes(num_chunks * self.attachment.chunk_bytes)
        self.attachment.store_inline(session_id, range(num_chunks * CHUNK_SIZE), data)

    def start(self, *arguments: str, pipe_into: str = "") -> subprocess.Popen[str]:
        """Start a command in a process of its own, whose output is read here or by a program of the shell."""
        command = [sys.executable, "-m", "kvdepot", *arguments, "--address", self.address]
        if pipe_into:
            line = f'"$@" 2>&3 | {pipe_into} >&2; echo "${{PIPESTATUS[0]}}"'
            command = ["bash", "-c", f"exec 3>&2; {line}", "-", *command]
        return subprocess.Popen(
            command,
            env=BUFFERED,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def attached(*flags: str) -> Iterator[Attached]:
    """Run a depot with chunks of 16 tokens, 256 bytes each, during the block."""
    with (
        server_process("--l1-size", "128KiB", "--chunk-size", str(CHUNK_SIZE), "--disable-metrics", *flags) as address,
        DepotClient(address) as client,
        client.attach(instance_id="pod-1", model_name="llama", groups=[GROUP]) as attachment,
    ):
        yield Attached(address, client, attachment)


def plain(text: str) -> str:
    """Return text without the escapes of colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)
