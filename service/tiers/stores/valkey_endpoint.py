"""Where a Valkey or Redis server is, and how a connection to it begins."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from service.tiers.store import StoreUnusable


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is, and what it wants to see first. Without `tls` the connection is plain.

    The password is read from its file for each connection, so that it may change.
    """

    host: str
    port: int
    database: int = 0
    user: str = ""
    password_file: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def greeting(self) -> list[tuple[bytes, ...]]:
        """Return the commands that begin a connection.

        Raises: StoreUnusable: the password's file can't be read.
        """
        commands: list[tuple[bytes, ...]] = []
        if self.password_file:
            try:
                with open(self.password_file, "rb") as file:  # noqa: PTH123 - a Path would be made for each connection
                    password = file.read().rstrip(b"\r\n")
            except OSError as error:
                raise StoreUnusable(f"password_file: {error}") from error
            commands.append((b"AUTH", *([self.user.encode()] if self.user else []), password))
        if self.database:
            commands.append((b"SELECT", b"%d" % self.database))
        return [*commands, (b"PING",)]
