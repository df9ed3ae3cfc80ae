"""The file of a tier's secret, the key of its records' sums."""

from __future__ import annotations

from pathlib import Path

SECRET_BYTES = 32


def read_secret(path: Path) -> bytes:
    """Return the secret in a file: its 32 bytes as they are, or as 64 hexadecimal digits.

    Raises: OSError. ValueError: it has other bytes.
    """
    with path.open("rb") as file:
        data = file.read(4 * SECRET_BYTES)
    if len(data) == SECRET_BYTES:
        return data
    try:
        secret = bytes.fromhex(data.decode())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"it has neither {SECRET_BYTES} bytes nor {2 * SECRET_BYTES} hexadecimal digits")
    return secret
