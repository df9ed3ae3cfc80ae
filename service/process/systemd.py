"""systemd: tells it the state of the service, and lets it keep a descriptor over restarts of this process.

The protocols are those of sd_notify(3) and sd_listen_fds(3). systemd keeps a descriptor only if the unit sets
`FileDescriptorStoreMax=`, from the message on until the service stops for good. A process that is killed loses nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_DESCRIPTORS = 1_024
SEND_SECONDS = 0.05
MAX_STATUS_BYTES = 1_000


class Systemd:
    """The service manager's socket. Without one every call does nothing. No failure is raised: it is logged.

    A call waits for up to 0.05 seconds, only while systemd reads no messages.
    """

    def __init__(self, notify_socket: str | None) -> None:
        """`notify_socket` is the value of NOTIFY_SOCKET: a path, or @ and an abstract name."""
        self._address = _address(notify_socket or "")

    def __repr__(self) -> str:
        return f"<Systemd {self._address!r}>" if self._address else "<Systemd absent>"

    @property
    def is_present(self) -> bool:
        """Whether a service manager wants messages."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Say that the service serves. `status` is a line that `systemctl status` shows."""
        self._send({"READY": "1", "STATUS": status})

    def stopping(self, status: str = "") -> None:
        """Say that the service ends."""
        self._send({"STOPPING": "1", "STATUS": status})

    def status(self, status: str) -> None:
        """Replace the line that `systemctl status` shows."""
        self._send({"STATUS": status})

    def store(self, fd: int, name: str) -> None:
        """Let systemd keep a descriptor for the next process, which gets it by `take_stored`.

        Nothing changes if systemd keeps it already. If the store is full, systemd does not keep it, and says so only
        in its own log: call `remove_stored` before a new descriptor replaces another one.
        """
        # Not polled: systemd drops a polled descriptor when its other end hangs up. Memory has no other end.
        self._send({"FDSTORE": "1", "FDPOLL": "0", "FDNAME": name}, fd)

    def remove_stored(self, name: str) -> None:
        """Let systemd close all descriptors that it keeps under this name."""
        self._send({"FDSTOREREMOVE": "1", "FDNAME": name})

    def _send(self, values: dict[str, str], fd: int | None = None) -> None:
        if not self._address:
            return
        lines = (f"{name}={_line(value)}" for name, value in values.items() if value)
        message = "\n".join(lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(SEND_SECONDS)
                manager.connect(self._address)
                if fd is None:
                    manager.send(message)
                else:
                    socket.send_fds(manager, [message], [fd])
        except OSError as error:
            logger.warning("SystemdNotNotified values=%s error=%s", ",".join(values), error)


def take_stored(environment: MutableMapping[str, str], name: str) -> list[int]:
    """Return the descriptors that systemd has kept under a name. They are the caller's to use or to close.

    No program that this process starts inherits them, or the variables: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are
    removed from `environment`. Descriptors with other names stay open and untouched. The list is empty if the
    variables are absent, for another process, or wrong; wrong ones are logged.
    """
    values = [environment.pop(variable, "") for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    pid, count, names = values
    if not pid or not count:
        return []
    if not (pid.isdecimal() and count.isdecimal() and len(count) <= 4 and int(count) <= MAX_DESCRIPTORS):
        logger.warning("SystemdDescriptorsIgnored LISTEN_PID=%.20r LISTEN_FDS=%.20r", pid, count)
        return []
    if pid != str(os.getpid()):
        return []  # they were for a parent, which has started this process without clearing its environment
    found = []
    fd_names = names.split(":")
    for number in range(int(count)):
        fd = FIRST_FD + number
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError as error:
            logger.warning("SystemdDescriptorsIgnored fd=%d error=%s", fd, error)
            continue
        if number < len(fd_names) and fd_names[number] == name:
            found.append(fd)
    return found


def _address(notify_socket: str) -> str:
    if not notify_socket or notify_socket.startswith("/"):
        return notify_socket
    if notify_socket.startswith("@"):
        return "\0" + notify_socket[1:]
    logger.warning("SystemdNotNotified NOTIFY_SOCKET=%.100r is no path and no abstract name", notify_socket)
    return ""


def _line(text: str) -> str:
    """Return a text as one line: a line break would begin another variable."""
    return " ".join(text.split()).encode()[:MAX_STATUS_BYTES].decode(errors="ignore")
