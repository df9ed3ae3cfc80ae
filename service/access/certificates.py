"""The server's certificate: read, checked, and handed to new connections, which see a new one without a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from service.access.files import read_file


class BadCertificate(Exception):
    """The files can't be used; the message says which and why, and nothing of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the server shows, and whom it asks to show one: clients that `client_ca` vouches for, None: nobody.

    `end_time` is when the first certificate of the chain ends, in seconds since the epoch.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)
    subject: str
    end_time: float

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What gRPC takes."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], root_certificates=self.client_ca)


def read_certificate(cert: Path, key: Path, client_ca: Path | None) -> Certificate:
    """Read and check the files: they are what they should be, the key is the certificate's, no time is over.

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
    """Credentials of one listener, that show to each new connection the certificate that is `current` then.

    gRPC asks in threads of its own. It is told None where nothing has changed, so that it keeps what it has made of
    the last one; each listener keeps its own, and so needs credentials of its own.
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
        fetch,  # type: ignore[arg-type]  # None: nothing has changed
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
