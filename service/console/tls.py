"""TLS of the console: the depot's own certificate, also after it changed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

from service.access.certificates import Certificate


def tls_context(current: Callable[[], Certificate]) -> ssl.SSLContext:
    """Return a context that shows each new connection the certificate that `current` returns."""
    shown = current()
    context = made = _context(shown)

    def choose(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        nonlocal shown, made
        certificate = current()
        if certificate is not shown:
            shown, made = certificate, _context(certificate)
        connection.context = made

    context.sni_callback = choose  # OpenSSL calls it for each connection, with a name or without
    return context


def _context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    file = os.memfd_create("certificate")  # OpenSSL reads files only; this one is in memory
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(certificate.chain + b"\n" + certificate.key)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    if certificate.client_ca is not None:
        context.load_verify_locations(cadata=certificate.client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context
