"""Who may call what: the settings' files, read and watched, and the rule that AdminService is for admins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from service.access.audit import Audit
from service.access.certificates import BadCertificate, Certificate, read_certificate
from service.access.credentials import Authentication, Caller, Context
from service.access.reload import ReloadedFiles
from service.access.tenants import TenantLimits, Tenants
from service.access.tenants_file import BadTenants, read_tenants
from service.errors import AdminOnly
from service.settings import BadSettings, Settings
from telemetry.events import Publisher

ADMIN = "/kvdepot.v1.AdminService/"
ACTS = frozenset({"/kvdepot.v1.AdminService/ClearCache"})


class Access:
    """Made of the settings. `tenants` and `certificate` are None where there are none.

    Raises: BadSettings, for a file that is missing or wrong.
    """

    def __init__(self, settings: Settings, bus: Publisher | None) -> None:
        self.tenants = _tenants(settings, bus)
        self.certificate = _certificate(settings, bus)
        self.audit = Audit(bus)
        self._authentication = Authentication(
            self.tenants.value if self.tenants is not None else None,
            over_tls=self.certificate is not None,
            tokens_over_plain_tcp=settings.tokens_over_plain_tcp,
        )

    def caller_of(self, context: Context) -> Caller:
        """Who calls. Raises: what `Authentication.caller_of` raises."""
        return self._authentication.caller_of(context)

    def check_may(self, who: Caller, method: str, context: Context) -> None:
        """Raise AdminOnly if the method is not for this caller."""
        if method.startswith(ADMIN):
            if not who.tenant.is_admin:
                raise AdminOnly("AdminService is for admins")
            if method in ACTS and who.tenant.name:
                self.audit.acted(method, context.peer(), who.tenant.name)

    def still(self, who: Caller) -> bool:
        """Whether a caller of a while ago is who it was."""
        return self._authentication.still(who)

    @property
    def certificate_seconds_left(self) -> float | None:
        """How long the server's certificate is good for, less than 0 if it has ended; None without TLS."""
        return self.certificate.value.end_time - time.time() if self.certificate is not None else None

    async def watch(self, changed: Callable[[Tenants], None]) -> None:
        """Read the files again when they change, for ever; tell of new tenants, who are asked for from then on."""

        def use(tenants: Tenants) -> None:
            self._authentication.use(tenants)
            changed(tenants)

        async with asyncio.TaskGroup() as watching:
            if self.tenants is not None:
                watching.create_task(self.tenants.watch(use), name="tenants")
            if self.certificate is not None:
                # Listeners look for it themselves, at the next connection.
                watching.create_task(self.certificate.watch(lambda _: None), name="certificate")


def _tenants(settings: Settings, bus: Publisher | None) -> ReloadedFiles[Tenants] | None:
    if not settings.tenants:
        return None
    path = Path(settings.tenants)
    defaults = TenantLimits(
        max_concurrent_rpcs=settings.tenant_max_concurrent_rpcs,
        max_attachments=settings.tenant_max_attachments,
        max_bytes_in_flight=settings.tenant_max_bytes_in_flight,
    )
    try:
        return ReloadedFiles("tenants", [path], lambda: read_tenants(path, defaults), BadTenants, bus)
    except BadTenants as error:
        raise BadSettings("\n".join(f"tenants: {line}" for line in str(error).splitlines())) from error


def _certificate(settings: Settings, bus: Publisher | None) -> ReloadedFiles[Certificate] | None:
    if not settings.tls_cert:
        return None
    cert, key = Path(settings.tls_cert), Path(settings.tls_key)
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    paths = [path for path in (cert, key, client_ca) if path is not None]
    try:
        return ReloadedFiles("certificate", paths, lambda: read_certificate(cert, key, client_ca), BadCertificate, bus)
    except BadCertificate as error:
        raise BadSettings(f"tls_cert: {error}") from error
