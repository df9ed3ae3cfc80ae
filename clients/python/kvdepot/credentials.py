"""What a client shows a depot, and what it asks the depot to show."""

from __future__ import annotations

import ipaddress
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

StrPath = str | os.PathLike[str]

READ_TOKEN_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A bearer token and a certificate for depots that have tenants, and authorities for those that serve with TLS.

    ``token``, or ``token_file``, which is read again every second that a call is made in: a token that is replaced
    there needs no restart. ``ca_file`` holds the authorities that sign depots' certificates, in PEM; ``tls`` alone
    takes the system's. ``certificate_file`` and ``key_file`` are the client's own, read when the client is made.
    ``server_name`` is what the depot's certificate has to be for, where that is not the host of the address.

    Unix sockets have no TLS. A token is not sent to another machine over plain TCP, unless ``plain_tcp`` says that
    something else keeps it secret, such as a mesh.
    """

    token: str = field(default="", repr=False)
    token_file: StrPath | None = None
    ca_file: StrPath | None = None
    certificate_file: StrPath | None = None
    key_file: StrPath | None = None
    server_name: str = ""
    tls: bool = False
    plain_tcp: bool = False

    def __post_init__(self) -> None:
        if self.token and self.token_file is not None:
            raise ValueError("token and token_file: give one of them")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file: give both or none")

    def channel_credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """For a channel to the address; None if it has no TLS.

        Raises:
            ValueError: a token would be sent to another machine over plain TCP.
            OSError: a file can't be read.
        """
        if address.startswith("unix:"):
            return None
        if not (self.tls or self.ca_file is not None or self.certificate_file is not None):
            if (self.token or self.token_file is not None) and not self.plain_tcp and not _is_on_this_machine(address):
                raise ValueError(f"{address}: a token is not sent over TCP without TLS; give ca_file, or tls=True")
            return None
        return grpc.ssl_channel_credentials(*map(_read, (self.ca_file, self.key_file, self.certificate_file)))

    def options(self) -> tuple[tuple[str, str], ...]:
        """Options for a channel with TLS."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


class Bearer:
    """The metadata that shows a token. Safe to share among threads."""

    def __init__(self, credentials: Credentials) -> None:
        self._file = Path(credentials.token_file) if credentials.token_file is not None else None
        self._read_at = 0.0
        self._metadata: tuple[tuple[str, str], ...] = _bearer(credentials.token)
        if self._file is not None:
            self.metadata()  # so that a file that can't be read is told at once

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call sends along. While the file can't be read, what was read before.

        Raises:
            OSError: it never could.
        """
        if self._file is not None and time.monotonic() - self._read_at >= READ_TOKEN_EVERY_SECONDS:
            try:
                self._metadata = _bearer(self._file.read_text().strip())
            except OSError:
                if not self._metadata:
                    raise
            self._read_at = time.monotonic()
        return self._metadata


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _read(path: StrPath | None) -> bytes | None:
    return Path(path).read_bytes() if path is not None else None


def _is_on_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
