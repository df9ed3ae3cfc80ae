"""A client's credentials, and the authorities that it trusts for depots' certificates."""

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
    """A bearer token or a certificate for a depot with tenants, and authorities for a depot with TLS.

    Give `token` or `token_file`. A call reads the file if the last read is more than a second ago, so that a token
    may be replaced there without a restart. `ca_file` holds the authorities that sign depots' certificates, in PEM;
    `tls` alone takes the system's. `certificate_file` and `key_file` are the client's own, read when the client
    is made. `server_name` is the name in the depot's certificate, where that is not the host of the address.

    Unix sockets have no TLS. The client sends no token to another machine over plain TCP, unless `plain_tcp` says
    that something else keeps it secret, such as a mesh.
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

    @property
    def has_tls(self) -> bool:
        """Whether a connection over TCP uses TLS."""
        return self.tls or self.ca_file is not None or self.certificate_file is not None

    def channel_credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Return the credentials of a channel to the address; None if it has no TLS.

        A token that would go to another machine over plain TCP is a ValueError.

        Raises: ValueError, OSError.
        """
        if address.startswith("unix:"):
            return None
        if not self.has_tls:
            if (self.token or self.token_file is not None) and not self.plain_tcp and not _is_on_this_machine(address):
                raise ValueError(f"{address}: a token is not sent over TCP without TLS; give ca_file, or tls=True")
            return None
        return grpc.ssl_channel_credentials(*map(_read, (self.ca_file, self.key_file, self.certificate_file)))

    def options(self) -> tuple[tuple[str, str], ...]:
        """Return options for a channel with TLS."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


class Bearer:
    """The metadata that carries a token. Safe to share among threads."""

    def __init__(self, credentials: Credentials) -> None:
        self._file = Path(credentials.token_file) if credentials.token_file is not None else None
        self._read_at = 0.0
        self._metadata: tuple[tuple[str, str], ...] = _bearer(credentials.token)
        if self._file is not None:
            self.metadata()  # raises if the file can't be read

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call. While the file can't be read, the last token counts, if there is one.

        Raises: OSError.
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
