"""The file of the takeover socket: private from its first moment, and never another process's."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

MAX_PATH_BYTES = 107
PROBE_SECONDS = 1.0


class CannotOfferTakeover(Exception):
    """The takeover socket can't be made: another depot listens there, or the path is bad."""


class SocketFile:
    """A listening unix socket of mode 600. The file of a process that has ended is replaced.

    Raises: CannotOfferTakeover.
    """

    def __init__(self, path: Path, backlog: int) -> None:
        self.path = path
        self._is_closed = False
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise CannotOfferTakeover(f"{path}: the path of a socket has at most {MAX_PATH_BYTES} bytes")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_stale(path)
            self.socket.bind(str(path))
            path.chmod(0o600)  # before `listen`, so that no process can have connected
            self.socket.listen(backlog)
            self._identity = _identity(path)
        except OSError as error:
            self.socket.close()
            raise CannotOfferTakeover(f"{path} can't be made: {error.strerror}") from error
        except CannotOfferTakeover:
            self.socket.close()
            raise

    def close(self) -> None:
        """Close the socket, and remove its file unless the file is another process's by now."""
        if self._is_closed:  # a successor's file may have the same inode number
            return
        self._is_closed = True
        self.socket.close()
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that has ended. Leave anything else as it is."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotOfferTakeover(f"{path} is no socket, and is left as it is. Remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except TimeoutError:
            raise CannotOfferTakeover(f"another depot listens at {path}, and does not answer") from None
        else:
            raise CannotOfferTakeover(f"another depot listens at {path}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
