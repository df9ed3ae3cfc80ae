"""The servers behind the depots: Valkey or Redis, and Mooncake's master, those that are installed here."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from kvdepot.cli.processes import ChildFailed

VALKEY_PROGRAMS = ("valkey-server", "redis-server")
MASTER_PROGRAM = "mooncake_master"
SEGMENT = "128MiB"
"""What each depot lends to Mooncake."""
_START_SECONDS = 20.0
_CLIENT_TTL_SECONDS = 5
_LAST_LINES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTier:
    """A tier that all depots share. `name` is for people, `url` for `--l2`."""

    name: str
    url: str


@contextmanager
def shared_tiers() -> Iterator[list[SharedTier]]:
    """Run the servers that are installed for the duration of the block. There may be none.

    Raises: ChildFailed.
    """
    with ExitStack() as servers:
        tiers: list[SharedTier] = []
        if (master := _master()) is not None:
            port = _free_port()
            ports = ("--rpc_address=127.0.0.1", f"--rpc_port={port}", f"--metrics_port={_free_port()}")
            ttl = f"--client_ttl={_CLIENT_TTL_SECONDS}"
            servers.enter_context(_server("Mooncake's master", [master, *ports, ttl], port))
            tiers.append(SharedTier(name="Mooncake", url=f"mooncake://127.0.0.1:{port}?segment={SEGMENT}"))
        if (valkey := next(filter(None, map(shutil.which, VALKEY_PROGRAMS)), None)) is not None:
            port = _free_port()
            options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
            command = [valkey, "--port", str(port), *options, "--maxmemory", "1gb"]
            servers.enter_context(_server(Path(valkey).name, command, port))
            tiers.append(SharedTier(name="Valkey", url=f"valkey://127.0.0.1:{port}"))
        yield tiers


def _master() -> str | None:
    """Return the program of Mooncake's master. None: Mooncake is not installed for this Python."""
    spec = find_spec("mooncake")
    if spec is None or not spec.submodule_search_locations:
        return None
    program = Path(spec.submodule_search_locations[0]) / MASTER_PROGRAM
    return str(program) if program.is_file() else None


@contextmanager
def _server(name: str, command: Sequence[str], port: int) -> Iterator[None]:
    """Run a server for the duration of the block, in a process group of its own: Ctrl-C does not reach it.

    Raises: ChildFailed.
    """
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **_libraries(command[0])},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        try:
            _wait(name, process, port, output)
            yield
        finally:
            process.kill()
            process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
    """Wait until a server accepts connections.

    Raises: ChildFailed.
    """
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.02)
    output.seek(0)
    tail = output.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    raise ChildFailed("\n".join([f"{name} does not start", *tail]))


def _libraries(program: str) -> dict[str, str]:
    """Return the variable that leads to the libraries that `make test-servers` unpacked beside a program."""
    folder = Path(program).resolve().parents[1] / "lib" / f"{os.uname().machine}-linux-gnu"
    if folder.is_relative_to("/usr") or not folder.is_dir():
        return {}
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
