"""Why a depot can't be reached: connects once more, as gRPC does, and says where that fails.

gRPC's own errors do not tell these faults apart. So this looks again after a failure, with plain sockets. Each wait has
a limit of a second or two. Nothing that it sends changes a depot: it opens a connection, and closes it.
"""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from kvdepot.cli.address import BadAddress, Tcp, Unix, read_address
from kvdepot.cli.cause import Cause
from kvdepot.cli.probe import CONNECT_SECONDS, HOW_TO_START, Answer, connect, preface_answer, why_not_grpc
from kvdepot.credentials import Credentials


def why_unreachable(address: str, credentials: Credentials) -> Cause | None:
    """Return why no call reaches the depot at this address. None: one would reach it at this moment."""
    try:
        place = read_address(address)
    except BadAddress as error:
        return error.cause
    if isinstance(place, Unix):
        return _why_not_unix(place)
    found = connect(place)
    if isinstance(found, Cause):
        return found
    with found:
        if credentials.has_tls:
            from kvdepot.cli.tls_probe import why_no_tls  # `ssl` takes a moment to import

            return why_no_tls(found, place, credentials)
        return _why_no_plain(found, place)


def _why_no_plain(connection: socket.socket, place: Tcp) -> Cause | None:
    answer = preface_answer(connection)
    if answer in (Answer.CLOSED, Answer.TLS, Answer.OTHER):
        from kvdepot.cli.tls_probe import speaks_tls  # `ssl` takes a moment to import

        if speaks_tls(place):
            return Cause(
                "the depot expects TLS, and this command came without it",
                "give --tls-ca FILE, the authority that signed the depot's certificate, or --tls to trust the system's",
            )
    return why_not_grpc(answer)


def _why_not_unix(place: Unix) -> Cause | None:
    if place.path.startswith("\0"):
        return _why_not_connected(place)
    path = Path(place.path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            return Cause(f"there is no folder {path.parent}", HOW_TO_START)
        return Cause(f"there is no socket {path}", HOW_TO_START)
    except PermissionError:
        return Cause(f"the folder of {path} may not be entered", "run this as a user who may, or change its mode")
    except OSError as error:
        return Cause(f"{path}: {error.strerror}", "name the socket of a depot")
    if not stat.S_ISSOCK(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a file"
        return Cause(f"{path} is {what}, and no socket", "name the socket of a depot with --address unix:/PATH")
    return _why_not_connected(place)


def _why_not_connected(place: Unix) -> Cause | None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(place.path)
        except ConnectionRefusedError:
            return Cause(
                "no depot listens at this socket: one that has ended left it behind",
                "start a depot there, which replaces the socket",
            )
        except PermissionError:
            return Cause(
                "this user has no permission for the socket",
                "run this as the depot's user or in its group, or see the depot's settings unix_socket_mode and _owner",
            )
        except (TimeoutError, BlockingIOError):
            return why_not_grpc(Answer.SILENCE)  # as many connections wait as the socket holds
        except OSError as error:
            return Cause(f"the socket can't be used: {error.strerror}", HOW_TO_START)
        return why_not_grpc(preface_answer(connection))
