"""Certificates for tests: an authority that signs them, and files that hold them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOCALHOST = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, in PEM."""

    cert: bytes
    key: bytes
    serial_number: int

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write NAME.crt and NAME.key, and return their paths."""
        cert, key = folder / f"{name}.crt", folder / f"{name}.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return str(cert), str(key)


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._builder(self._name, self._key.public_key(), (-1, 10), is_ca=True).sign(
            self._key, hashes.SHA256()
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, folder: Path, name: str = "ca") -> str:
        """Write the authority's certificate to NAME.crt and return its path."""
        path = folder / f"{name}.crt"
        path.write_bytes(self.pem)
        return str(path)

    def issue(
        self,
        common_name: str = "depot",
        names: tuple[x509.GeneralName, ...] = LOCALHOST,
        days: tuple[float, float] = (-1, 5),
    ) -> Issued:
        """Issue a certificate for these names. Its validity begins and ends some days after today."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key.public_key(), days, is_ca=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem_key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), pem_key, certificate.serial_number)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[float, float], *, is_ca: bool
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
