"""Access: authenticates and authorizes callers by the files of the settings, and watches these files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from service.access.audit import Audit
from service.access.certificates import BadCertificate, Certificate, read_certificate
from service.access.credentials import DEFAULT_TENANT, Authenticator, Caller, Context
from service.access.reload import ReloadedFiles
from service.access.tenants import TenantLimits, Tenants
from service.access.tenants_file import BadTenants, read_tenants
from service.errors import AdminOnly
from service.load_settings import BadSettings
from service.settings import Settings
from service.tiers.disk.disk_layout import smallest_disk_bytes
from telemetry.events import Publisher

ADMIN_SERVICE = "/kvdepot.v1.AdminService/"
AUDITED_METHODS = frozenset({"/kvdepot.v1.AdminService/ClearCache", "/kvdepot.v1.AdminService/SetLogLevel"})


class Access:
    """The tenants and the certificate of the settings. Each is None if the settings name none.

    A file that is missing or wrong is an error.

    Raises: BadSettings.
    """

    def __init__(self, settings: Settings, bus: Publisher | None) -> None:
        self.tenants = _tenants(settings, bus)
        self.certificate = _certificate(settings, bus)
        self.audit = Audit(bus)
        self._authenticator = Authenticator(
            self.tenants.value if self.tenants is not None else None,
            over_tls=self.certificate is not None,
            tokens_over_plain_tcp=settings.tokens_over_plain_tcp,
        )

    @property
    def all_tenants(self) -> Tenants:
        """The tenants of the file. Without one there is the default tenant only."""
        return self.tenants.value if self.tenants is not None else Tenants([DEFAULT_TENANT])

    def authenticate(self, context: Context) -> Caller:
        """Return the caller.

        Raises: CredentialsMissing, TokenUnknown, TokenExpired, CertificateUnknown, CredentialsConflict,
            InsecureTransport.
        """
        return self._authenticator.authenticate(context)

    def authorize(self, caller: Caller, method: str, context: Context) -> None:
        """Check that the caller may call the method: AdminService is for admins only.

        Raises: AdminOnly.
        """
        if method.startswith(ADMIN_SERVICE):
            if not caller.tenant.is_admin:
                raise AdminOnly("AdminService is for admins")
            if method in AUDITED_METHODS and caller.tenant.name:
                self.audit.acted(method, context.peer(), caller.tenant.name)

    def is_valid(self, caller: Caller) -> bool:
        """Return whether the credentials of an authenticated caller still stand for the same tenant."""
        return self._authenticator.is_valid(caller)

    @property
    def certificate_seconds_left(self) -> float | None:
        """Seconds until the server's certificate ends, negative after its end. None without TLS."""
        return self.certificate.value.end_time - time.time() if self.certificate is not None else None

    async def watch(self, changed: Callable[[Tenants], None]) -> None:
        """Read the files again when they change. Use new tenants at once, and pass them to `changed`. Never return."""

        def use(tenants: Tenants) -> None:
            self._authenticator.use(tenants)
            changed(tenants)

        async with asyncio.TaskGroup() as watching:
            if self.tenants is not None:
                watching.create_task(self.tenants.watch(use), name="tenants")
            if self.certificate is not None:
                # Listeners read `value` at each new connection.
                watching.create_task(self.certificate.watch(lambda _: None), name="certificate")


def _tenants(settings: Settings, bus: Publisher | None) -> ReloadedFiles[Tenants] | None:
    if not settings.tenants:
        return None
    path = Path(settings.tenants)
    defaults = TenantLimits(
        max_concurrent_rpcs=settings.tenant_max_concurrent_rpcs,
        max_attachments=settings.tenant_max_attachments,
        max_bytes_in_flight=settings.tenant_max_bytes_in_flight,
        max_pinned_bytes=int(settings.tenant_max_pinned * settings.l1_size),
    )
    disk_bytes = smallest_disk_bytes(settings.tier_addresses())
    try:
        return ReloadedFiles(
            "tenants", [path], lambda: read_tenants(path, defaults, settings.l1_size, disk_bytes), BadTenants, bus
        )
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
