"""The files that a tier's address names: passwords, credentials, secrets and certificates."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from service.tiers.address.address import TierAddress
from service.tiers.address.options import OPTIONS
from service.tiers.address.secret_file import read_secret

MAX_FILE_BYTES = 1 << 20


def faults(address: TierAddress) -> Iterator[str]:
    """Yield what is wrong with each file, and never what is in it."""
    are_readable = True
    for name, path in _files(address):
        try:
            _read(path)
            if name == "secret_file":
                read_secret(path)
        except (OSError, ValueError) as error:
            are_readable = False
            yield f"{name}={path}: {getattr(error, 'strerror', None) or error}"
    if are_readable and (fault := _tls_fault(address)):
        yield fault


def readable_by_all(address: TierAddress) -> Iterator[str]:
    """Yield each file with a secret that every user of this machine can read, as the address names it."""
    for name, path in _files(address):
        if OPTIONS[address.kind][name].is_secret_file:
            try:
                if path.stat().st_mode & stat.S_IROTH:
                    yield f"{name}={path}"
            except OSError:  # it is among the faults
                continue


def _files(address: TierAddress) -> Iterator[tuple[str, Path]]:
    for name, option in OPTIONS[address.kind].items():
        if option.is_file and name in address.options:
            yield name, Path(address.options[name])


def _read(path: Path) -> bytes:
    """Return what is in a file.

    Raises: OSError. ValueError: it is empty, too large, or no file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if not data.strip():
        raise ValueError("it is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ValueError("it has more than 1 MiB")
    return data


def _tls_fault(address: TierAddress) -> str:
    """Return why the certificates can't be used. Empty: they can."""
    ca_file, cert_file = address.options.get("ca_file"), address.options.get("cert_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except (ssl.SSLError, OSError):
            return f"ca_file={ca_file}: it has no certificates in PEM"
    if cert_file:
        try:
            # Without a password for the key, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(cert_file, address.options["key_file"], password="")
        except (ssl.SSLError, OSError):
            return f"cert_file={cert_file}: it and key_file are no certificate and its unencrypted key in PEM"
    return ""
