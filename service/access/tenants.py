"""Tenants: who may call, and how a token or a certificate is told to be whose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NewType

TokenHash = NewType("TokenHash", bytes)


def token_hash(token: str) -> TokenHash:
    """SHA-256 of a bearer token. It is all that is kept, and what tokens are looked up by."""
    return TokenHash(hashlib.sha256(token.encode()).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """How much of the depot a tenant may take at once."""

    max_concurrent_rpcs: int
    max_attachments: int
    max_bytes_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token, by its hash; `expire_time` is in seconds since the epoch, infinite if it does not expire."""

    hash: TokenHash
    expire_time: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tenant:
    """Somebody whose chunks, sessions and instances are nobody else's.

    `name` is empty where no tenants are configured: then everybody is this one tenant. `certificates` are names of
    clients' certificates: a DNS name or a URI among the alternative names, or the common name of one that has none.
    """

    name: str
    is_admin: bool
    limits: TenantLimits
    tokens: tuple[Token, ...] = ()
    certificates: tuple[str, ...] = ()


class Tenants:
    """All tenants, as one state of the file has them; names, tokens and certificates are each one tenant's."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._by_certificate = {
            name.encode(): tenant for tenant in self._by_name.values() for name in tenant.certificates
        }

    def __repr__(self) -> str:
        return f"<Tenants {', '.join(self._by_name)}>"

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def by_name(self) -> Mapping[str, Tenant]:
        """Every tenant."""
        return self._by_name

    @property
    def have_certificates(self) -> bool:
        """Whether any tenant is known by a certificate."""
        return bool(self._by_certificate)

    def of_certificate(self, names: Iterable[bytes]) -> list[Tenant]:
        """Whose certificate has these names: nobody's, one tenant's, or of several, which nobody can be."""
        found: list[Tenant] = []
        for name in names:
            tenant = self._by_certificate.get(name)
            if tenant is not None and tenant not in found:
                found.append(tenant)
        return found
