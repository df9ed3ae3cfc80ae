"""The address of a depot as a command is given it: read, and refused in words if it is none."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kvdepot.cli.cause import Cause

MAX_PORT = 65_535
MAX_SOCKET_PATH_BYTES = 107

_WITHOUT_MEANING = ("dns:///", "dns:", "ipv4:", "ipv6:")  # gRPC's names for what HOST:PORT already says
_FORMS = "an address is HOST:PORT, [IPV6]:PORT or unix:/PATH"


@dataclass(frozen=True, slots=True)
class Tcp:
    """A port of a host. The host is a name or an IP address without brackets."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Unix:
    """A unix socket. The path of an abstract one begins with a null byte."""

    path: str


class BadAddress(ValueError):
    """The text is no address. `cause` says why."""

    def __init__(self, problem: str, hint: str = _FORMS) -> None:
        super().__init__(problem)
        self.cause = Cause(f"the address is malformed: {problem}", hint)


def read_address(text: str) -> Tcp | Unix:
    """Return the address that the text names.

    Raises: BadAddress.
    """
    if text.startswith("unix-abstract:"):
        return Unix("\0" + text.removeprefix("unix-abstract:"))
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    if text.startswith("/"):
        raise BadAddress("a path is not enough", f"for a unix socket give unix:{text}")
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "dns":
        rest = rest.split("/")[0]
        raise BadAddress(f"{scheme}:// does not belong to it", f"give {rest or 'HOST:PORT'}, without {scheme}://")
    for prefix in _WITHOUT_MEANING:
        text = text.removeprefix(prefix)
    return _tcp(text)


def _unix(path: str) -> Unix:
    path = path.removeprefix("//")
    if not path:
        raise BadAddress("unix: lacks the path of the socket")
    num_bytes = len(path.encode())
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise BadAddress(
            f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes, and this one has {num_bytes}",
            "let the depot listen at a shorter path",
        )
    return Unix(path)


def _tcp(text: str) -> Tcp:
    if not text:
        raise BadAddress("it is empty")
    host, separator, port = text.rpartition(":")
    if not separator:
        raise BadAddress("it has no port", f"give {text}:50051, or the port at which the depot listens")
    if text.count(":") > 1 and not (host.startswith("[") and host.endswith("]")):
        hint = f"give [{text}]:50051" if _is_ipv6(text) else f"give [{host}]:{port}"
        raise BadAddress("an IPv6 address stands in brackets, before the port", hint)
    if not host or host == "[]":
        raise BadAddress("it has no host", f"give 127.0.0.1:{port}, or the host of the depot")
    if not port:
        raise BadAddress("the port is missing", f"give {host}:50051, or the port at which the depot listens")
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= MAX_PORT:
        raise BadAddress(f"{port} is no port", f"a port is a number from 1 to {MAX_PORT}, such as 50051")
    return Tcp(host.strip("[]"), int(port))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
