"""The server's certificate: reads and checks its files, and gives each new connection the current one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from service.access.reload import read_file


class BadCertificate(Exception):
    """A file can't be used. The message names the file and the fault, and contains no part of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The server's certificate chain and key in PEM, and the authorities that sign clients' certificates.

    If `client_ca` is None, clients need no certificate. `end_time` is when the first certificate of the chain ends, in
    seconds since the epoch.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    subject: str
    end_time: float

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the same values for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], root_certificates=self.client_ca)


def read_certificate(cert: Path, key: Path, client_ca: Path | None) -> Certificate:
    """Read and check the files.

    Both PEM files parse, the key belongs to the certificate, and the certificate is valid at this time.

    Raises: BadCertificate.
    """
    chain_pem, key_pem = _read(cert), _read(key)
    client_ca_pem = _read(client_ca) if client_ca is not None else None
    chain = _certificates(cert, chain_pem)
    encoding = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    try:
        of_key = load_pem_private_key(key_pem, password=None).public_key().public_bytes(*encoding)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise BadCertificate(f"{key}: is not a private key in PEM without a password") from error
    try:
        of_certificate = chain[0].public_key().public_bytes(*encoding)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate(f"{cert}: the certificate has a key of a kind that is not known") from error
    if of_key != of_certificate:
        raise BadCertificate(f"{key}: is not the key of the certificate in {cert}")
    now = datetime.now(UTC)
    if chain[0].not_valid_after_utc <= now:
        raise BadCertificate(f"{cert}: the certificate has ended at {chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if chain[0].not_valid_before_utc > now:
        raise BadCertificate(f"{cert}: the certificate begins at {chain[0].not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if client_ca is not None and client_ca_pem is not None:
        _certificates(client_ca, client_ca_pem)
    return Certificate(
        chain=chain_pem,
        key=key_pem,
        client_ca=client_ca_pem,
        subject=chain[0].subject.rfc4514_string(),
        end_time=min(each.not_valid_after_utc for each in chain).timestamp(),
    )


def server_credentials(current: Callable[[], Certificate]) -> grpc.ServerCredentials:
    """Return the credentials of one listener. Each new connection gets the certificate that `current` returns.

    gRPC calls `fetch` in its own threads, and reuses the last configuration if `fetch` returns None. Each listener has
    its own last configuration, so each listener needs its own credentials.
    """
    shown = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        certificate = current()
        if certificate is shown:
            return None
        shown = certificate
        return certificate.configuration()

    return grpc.dynamic_ssl_server_credentials(
        shown.configuration(),
        fetch,  # type: ignore[arg-type]  # the stub does not know that None is allowed
        require_client_authentication=shown.client_ca is not None,
    )


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise BadCertificate(f"{path}: {error.strerror}") from error


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise BadCertificate(f"{path}: holds no certificate in PEM") from error
