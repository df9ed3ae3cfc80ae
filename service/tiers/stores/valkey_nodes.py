"""Which server has a key: one server has all, or the nodes of a cluster have some each."""

from __future__ import annotations

import binascii
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from service.tiers.store import StoreError, StoreUnusable
from service.tiers.stores.resp import Connection, ErrorReply, Redirected, Reply, command
from service.tiers.stores.valkey_endpoint import Endpoint

NUM_SLOTS = 16_384


class Nodes(Protocol):
    """The servers of a store, each with its connection."""

    def of(self, key: bytes, give_up_at: float) -> Connection:
        """Return the connection to the server of a key.

        Raises: StoreError.
        """

    def follow(self, redirected: Redirected) -> Connection:
        """Return the connection to the server that another one named.

        Raises: StoreError.
        """

    def all(self) -> Iterable[Connection]:
        """Return the connections that there are."""

    def doubt(self) -> None:
        """Find out again which server has what, because a call failed."""


class OneServer:
    """One server has all keys."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = Connection(endpoint)

    def of(self, key: bytes, give_up_at: float) -> Connection:
        """Return the only connection."""
        return self._connection

    def follow(self, redirected: Redirected) -> Connection:
        """Refuse: the address lacks an option."""
        raise StoreUnusable(f"{self._connection.endpoint} belongs to a cluster: add cluster=true to the address")

    def all(self) -> Iterable[Connection]:
        """Return the only connection."""
        return (self._connection,)

    def doubt(self) -> None:
        """Do nothing."""


class _Range(NamedTuple):
    first_slot: int
    last_slot: int
    endpoint: Endpoint


class Cluster:
    """The nodes of a cluster, by hash slot. They are found by any node, and again after a redirection or a failure."""

    def __init__(self, seed: Endpoint) -> None:
        self._seed = seed
        self._connections: dict[Endpoint, Connection] = {}
        self._ranges: list[_Range] = []

    def of(self, key: bytes, give_up_at: float) -> Connection:
        """Return the connection to the node that serves a key's slot."""
        if not self._ranges:
            self._find(give_up_at)
        slot = hash_slot(key)
        number = bisect_right(self._ranges, slot, key=lambda each: each.first_slot) - 1
        if number < 0 or slot > self._ranges[number].last_slot:
            self._ranges = []
            raise StoreError(f"{self._seed}: no node of the cluster serves slot {slot}")
        return self._to(self._ranges[number].endpoint)

    def follow(self, redirected: Redirected) -> Connection:
        """Return the connection to the node that another one named, and look for the others again if it stays so."""
        if not redirected.is_once:
            self.doubt()
        return self._to(self._endpoint(redirected.host, redirected.port))

    def all(self) -> Iterable[Connection]:
        """Return the connections that there are."""
        return self._connections.values()

    def doubt(self) -> None:
        """Ask for the slots before the next call."""
        self._ranges = []

    def _find(self, give_up_at: float) -> None:
        """Ask the nodes that are known, one after the other, and the first address of all."""
        failed: StoreError | None = None
        for endpoint in (*self._connections, self._seed):
            connection = self._to(endpoint)
            try:
                with connection.call(give_up_at):
                    connection.send(command(b"CLUSTER", b"SLOTS"))
                    reply = connection.reply()
            except StoreUnusable:
                raise
            except StoreError as error:
                failed = error
                continue
            if isinstance(reply, ErrorReply) and reply.code == "ERR":
                raise StoreUnusable(f"{reply}: leave cluster=true out of the address if it is no cluster")
            if isinstance(reply, StoreError):
                raise reply
            self._ranges = sorted(self._ranges_of(reply))
            return
        raise failed or StoreError(f"{self._seed}: no node of the cluster answers")

    def _ranges_of(self, reply: Reply) -> Iterable[_Range]:
        for each in reply if isinstance(reply, list) else ():
            match each:
                case [int(first), int(last), [host, int(port), *_], *_]:
                    name = host.decode() if isinstance(host, bytes) else ""
                    yield _Range(first, last, self._endpoint(name, port))
                case _:
                    raise StoreError(f"{self._seed} answered CLUSTER SLOTS with {str(each)[:80]}")

    def _endpoint(self, host: str, port: int) -> Endpoint:
        # A node that does not know its own name leaves it out: it is the one that was asked.
        return replace(self._seed, host=host if host not in ("", "?") else self._seed.host, port=port)

    def _to(self, endpoint: Endpoint) -> Connection:
        if endpoint not in self._connections:
            self._connections[endpoint] = Connection(endpoint)
        return self._connections[endpoint]


def hash_slot(key: bytes) -> int:
    """Return a key's slot: CRC16 (XMODEM) of it, or of what is between its first braces."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1)
    tagged = key[begin + 1 : end] if begin >= 0 and end > begin + 1 else key
    return binascii.crc_hqx(tagged, 0) % NUM_SLOTS
