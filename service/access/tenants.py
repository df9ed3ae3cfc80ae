"""Tenants: their limits, and the tokens and certificates that identify them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NewType

TokenHash = NewType("TokenHash", bytes)


def token_hash(token: str) -> TokenHash:
    """Return the SHA-256 of a bearer token. The depot keeps only the hash, and finds tokens by it."""
    return TokenHash(hashlib.sha256(token.encode()).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """The most that one tenant may use at a time."""

    max_concurrent_rpcs: int
    max_attachments: int
    max_bytes_in_flight: int
    max_pinned_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The hash of a bearer token. `expire_time` is in seconds since the epoch, or infinite."""

    hash: TokenHash
    expire_time: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tenant:
    """An owner of chunks, sessions and instances, which it shares with no other tenant.

    The default tenant has an empty `name`. Without a file of tenants, every caller is the default tenant. The
    `certificates` are names in clients' certificates: a DNS name or a URI among the alternative names, or the common
    name of a certificate without alternative names. `l1_share_bytes` of L1 are its own, and `disk_share_bytes` of
    each disk tier: others may use what it leaves free there, and lose it when this tenant needs it.
    """

    name: str
    is_admin: bool
    limits: TenantLimits
    tokens: tuple[Token, ...] = ()
    certificates: tuple[str, ...] = ()
    l1_share_bytes: int = 0
    disk_share_bytes: int = 0


class Tenants:
    """All tenants of one version of the file. No two tenants have the same name, token or certificate name."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self.by_name: Mapping[str, Tenant] = {tenant.name: tenant for tenant in tenants}
        self._by_certificate = {
            name.encode(): tenant for tenant in self.by_name.values() for name in tenant.certificates
        }

    def __repr__(self) -> str:
        return f"<Tenants {', '.join(self.by_name)}>"

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def have_certificates(self) -> bool:
        """Whether any tenant has a certificate name."""
        return bool(self._by_certificate)

    def of_certificate(self, names: Iterable[bytes]) -> list[Tenant]:
        """Return the tenants that a certificate with these names stands for. A valid certificate stands for one."""
        return list(dict.fromkeys(self._by_certificate[name] for name in names if name in self._by_certificate))
