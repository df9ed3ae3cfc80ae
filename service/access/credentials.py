"""Credentials: finds the tenant of a call by its token or its certificate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from service.access.tenants import Tenant, TenantLimits, Tenants, TokenHash, token_hash
from service.errors import (
    CertificateUnknown,
    CredentialsConflict,
    CredentialsMissing,
    InsecureTransport,
    OtherTenant,
    TokenExpired,
    TokenUnknown,
)

BEARER = "bearer "
# How gRPC writes peers of this machine. An IPv4 address may come in the form of an IPv6 address.
ON_THIS_MACHINE = ("unix:", "ipv4:127.", "ipv6:%5B::1%5D:", "ipv6:%5B::ffff:127.")
WITHOUT_LIMIT = TenantLimits(
    max_concurrent_rpcs=1 << 62, max_attachments=1 << 62, max_bytes_in_flight=1 << 62, max_pinned_bytes=1 << 62
)
DEFAULT_TENANT = Tenant(name="", is_admin=True, limits=WITHOUT_LIMIT)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated tenant and its credentials: a token, the names of a certificate, or none for the default tenant.

    `expire_time` is in seconds since the epoch.
    """

    tenant: Tenant
    token: TokenHash | None = None
    certificate: Sequence[bytes] = ()
    expire_time: float = float("inf")

    def seconds_left(self) -> float | None:
        """Return the seconds until the credentials expire. None: they do not expire."""
        return max(0.0, self.expire_time - time.time()) if self.expire_time < float("inf") else None


DEFAULT_CALLER = Caller(DEFAULT_TENANT)
caller: ContextVar[Caller] = ContextVar("caller")
"""The caller of the running RPC. It has no default, so that an RPC without authentication fails."""


def visible_tenant(requested: str) -> str:
    """Return the tenant whose data the caller may see. An admin sees the tenant that it names ("": all tenants).

    Raises: OtherTenant.
    """
    own = caller.get().tenant
    if own.is_admin or requested in ("", own.name):
        return requested if own.is_admin else own.name
    raise OtherTenant("only an admin sees other tenants")


class Authenticator:
    """The tokens and certificates of all tenants. Without `tenants` each caller is the default tenant.

    The default tenant may do everything.

    `over_tls`: TCP is served with TLS only, so that others can't read tokens on the network.
    """

    def __init__(self, tenants: Tenants | None, *, over_tls: bool, tokens_over_plain_tcp: bool) -> None:
        self._is_plain_tcp_forbidden = not over_tls and not tokens_over_plain_tcp
        self.use(tenants)

    def use(self, tenants: Tenants | None) -> None:
        """Replace the tenants."""
        self._tenants = tenants
        # Built here once, because each call needs one.
        self._by_token = {
            token.hash: Caller(tenant, token.hash, (), token.expire_time)
            for tenant in (tenants.by_name.values() if tenants is not None else ())
            for token in tenant.tokens
        }

    def authenticate(self, context: Context) -> Caller:
        """Return the caller by its token and its certificate. If both name a tenant, it must be the same one.

        Raises: CredentialsMissing, TokenUnknown, TokenExpired, CertificateUnknown, CredentialsConflict,
            InsecureTransport.
        """
        tenants = self._tenants
        if tenants is None:
            return DEFAULT_CALLER
        tokens = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        names = _names_of_certificate(context) if tenants.have_certificates else ()
        if tokens:
            return self._of_token(tenants, tokens, names, context)
        if not names and not (tenants.have_certificates and has_certificate(context)):
            raise CredentialsMissing("this depot asks for a bearer token, or a client certificate, of each caller")
        found = tenants.of_certificate(names)
        if not found:
            raise CertificateUnknown("the client certificate is no tenant's")
        if len(found) > 1:
            raise CredentialsConflict("the client certificate has names of several tenants")
        return Caller(found[0], certificate=names)

    def is_valid(self, earlier: Caller) -> bool:
        """Return whether the credentials of an authenticated caller still stand for the same tenant."""
        tenants = self._tenants
        if tenants is None:
            return True
        if earlier.token is not None:
            by_token = self._by_token.get(earlier.token)
            tenant = by_token.tenant if by_token is not None and by_token.expire_time > time.time() else None
        else:
            by_certificate = tenants.of_certificate(earlier.certificate)
            tenant = by_certificate[0] if len(by_certificate) == 1 else None
        return tenant is not None and (tenant.name, tenant.is_admin) == (earlier.tenant.name, earlier.tenant.is_admin)

    def _of_token(
        self, tenants: Tenants, tokens: Sequence[str | bytes], names: Sequence[bytes], context: Context
    ) -> Caller:
        value = tokens[0]
        if len(tokens) > 1 or not isinstance(value, str) or value[: len(BEARER)].lower() != BEARER:
            raise TokenUnknown("authorization: one value is expected, Bearer and a token")
        if self._is_plain_tcp_forbidden and not context.peer().startswith(ON_THIS_MACHINE):
            raise InsecureTransport("the token came over TCP without TLS, where others can read it: replace it")
        # Looked up by its hash, so that the time of a look-up reveals nothing about a nearly right token.
        found = self._by_token.get(token_hash(value[len(BEARER) :].strip()))
        if found is None:
            raise TokenUnknown("the bearer token is no tenant's")
        if found.expire_time <= time.time():
            raise TokenExpired("the bearer token has expired")
        if names and any(each is not found.tenant for each in tenants.of_certificate(names)):
            raise CredentialsConflict("the bearer token and the client certificate are of different tenants")
        return found


def _names_of_certificate(context: Context) -> Sequence[bytes]:
    """Return the names in the peer's verified certificate. Empty: the peer has none."""
    facts = context.auth_context()
    names = (*facts.get("peer_dns", ()), *facts.get("peer_uri", ()))
    if names or "x509_subject_alternative_name" in facts:
        return names
    return tuple(facts.get("x509_common_name", ()))


def has_certificate(context: Context) -> bool:
    """Return whether the peer came over TLS with a verified certificate."""
    return "x509_pem_cert" in context.auth_context()
