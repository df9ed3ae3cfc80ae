"""Peers: the hosts that calls come from, and a limit on the open calls of each. For RPCs without authentication."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from service.errors import TooManyRpcs

SITE_BITS = 64  # of an IPv6 address; a host can choose the other bits itself


def peer_of(address: str) -> str:
    """Return the host in an address that gRPC wrote. For IPv6, return the network of the host's site.

    All clients of a unix socket are one peer.
    """
    kind, _, rest = address.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest.rpartition(":")[0]).strip("[]").partition("%")[0]
    if kind == "ipv4":
        return host
    try:
        ip = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, SITE_BITS), strict=False).network_address)


class PeerLimit:
    """A limit on open calls: `per_peer` of each peer, and an even share of `in_all` once `in_all` calls are open.

    A peer without open calls is never refused, so that other peers can't shut it out.
    """

    def __init__(self, per_peer: int, in_all: int) -> None:
        self._per_peer = per_peer
        self._in_all = in_all
        self._num_open: Counter[str] = Counter()
        self._num_open_in_all = 0

    def __repr__(self) -> str:
        return f"<PeerLimit {self._num_open_in_all}/{self._in_all} calls of {len(self._num_open)} peers>"

    @contextmanager
    def open_call(self, peer: str) -> Iterator[None]:
        """Count an open call of a peer while the block runs.

        Raises: TooManyRpcs.
        """
        num_open = self._num_open[peer]
        if num_open >= self._per_peer:
            raise TooManyRpcs(f"{self._per_peer} calls of this peer are open")
        if self._num_open_in_all >= self._in_all and num_open and num_open >= self._in_all // len(self._num_open):
            raise TooManyRpcs(f"{self._in_all} calls are open")
        self._num_open[peer] += 1
        self._num_open_in_all += 1
        try:
            yield
        finally:
            self._num_open_in_all -= 1
            self._num_open[peer] -= 1
            if not self._num_open[peer]:
                del self._num_open[peer]
