"""A service manager that keeps descriptors as systemd does, and starts the next process with them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

MESSAGE_BYTES = 4_096
START = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in sys.argv[2:]]
for number, copy in enumerate(copies, start=3):
    os.dup2(copy, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


class FakeServiceManager:
    """Listens for the messages of sd_notify. `stored` are the kept descriptors by name, at most `max_stored`."""

    def __init__(self, address: str, max_stored: int = 1) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10.0)
        self._socket.bind(address)
        self._max_stored = max_stored
        self.stored: list[tuple[str, int]] = []

    def receive(self) -> dict[str, str]:
        """Return the variables of the next message, and do what it says about descriptors."""
        message, fds, flags, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 8)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        values = dict(line.split("=", 1) for line in message.decode().split("\n"))
        if values.get("FDSTORE") == "1":
            assert len(fds) == 1
            self._store(values["FDNAME"], fds[0])
        elif values.get("FDSTOREREMOVE") == "1":
            for name, fd in self.stored:
                if name == values["FDNAME"]:
                    os.close(fd)
            self.stored = [(name, fd) for name, fd in self.stored if name != values["FDNAME"]]
        return values

    def start(self, script: str) -> str:
        """Run a Python script with the descriptors from number 3 on, and return what it prints."""
        fds = [fd for _, fd in self.stored]
        names = ":".join(name for name, _ in self.stored)
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", START, script, *map(str, fds)],
            env=os.environ | {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names},
            pass_fds=fds,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return finished.stdout

    def close(self) -> None:
        self._socket.close()
        for _, fd in self.stored:
            os.close(fd)

    def _store(self, name: str, fd: int) -> None:
        found = os.fstat(fd)
        kept = any(os.path.samestat(found, os.fstat(other)) for _, other in self.stored)
        if kept or len(self.stored) >= self._max_stored:
            os.close(fd)
        else:
            self.stored.append((name, fd))
