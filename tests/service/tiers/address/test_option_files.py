"""Files that an address names are checked before a tier needs them, and what is in them is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from service.tiers.address.address import TierAddress
from service.tiers.address.option_files import faults, readable_by_all
from service.tiers.address.secret_file import read_secret
from tests.fakes.authority import Authority

DISK = "disk:///d?size=1GiB&secret_file="


def valkey(options: str) -> TierAddress:
    return TierAddress.parse(f"valkeys://cache:6379?{options}")


def test_files_that_can_be_used_have_no_faults(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "depot")
    (tmp_path / "password").write_text("hunter2\n")
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    address = valkey(
        f"password_file={tmp_path}/password&secret_file={tmp_path}/secret"
        f"&ca_file={authority.write(tmp_path)}&cert_file={cert}&key_file={key}"
    )
    assert list(faults(address)) == []
    assert list(faults(TierAddress.parse("disk:///d?size=1GiB"))) == []


@pytest.mark.parametrize(
    "data", [bytes(range(32)), bytes(range(32)).hex().encode(), bytes(range(32)).hex().encode() + b"\n"]
)
def test_a_secret_is_32_bytes_or_64_digits(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(data)
    assert read_secret(path) == bytes(range(32))


@pytest.mark.parametrize("data", [b"hunter2", b"x" * 33, b"ab" * 31, b"zz" * 32, b"\xff" * 64])
def test_a_secret_of_another_length_is_refused_and_not_shown(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(data)
    assert list(faults(TierAddress.parse(DISK + str(path)))) == [
        f"secret_file={path}: it has neither 32 bytes nor 64 hexadecimal digits"
    ]


def test_each_fault_names_the_option_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    address = valkey(
        f"password_file={tmp_path}/empty&secret_file={tmp_path}/nothing"
        f"&ca_file={tmp_path}&cert_file={tmp_path}/large&key_file={tmp_path}/empty"
    )
    assert sorted(faults(address)) == [
        f"ca_file={tmp_path}: it is no regular file",
        f"cert_file={tmp_path}/large: it has more than 1 MiB",
        f"key_file={tmp_path}/empty: it is empty",
        f"password_file={tmp_path}/empty: it is empty",
        f"secret_file={tmp_path}/nothing: No such file or directory",
    ]


def test_certificates_are_tried(tmp_path: Path) -> None:
    authority = Authority()
    cert, _ = authority.issue().write(tmp_path, "depot")
    _, other_key = authority.issue().write(tmp_path, "other")
    (tmp_path / "text").write_text("no certificate")
    assert list(faults(valkey(f"ca_file={tmp_path}/text"))) == [
        f"ca_file={tmp_path}/text: it has no certificates in PEM"
    ]
    [fault] = faults(valkey(f"cert_file={cert}&key_file={other_key}"))
    assert fault.startswith(f"cert_file={cert}: it and key_file are no certificate")


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    issued = Authority().issue()
    cert, key = issued.write(tmp_path, "depot")
    encrypted = serialization.load_pem_private_key(issued.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hunter2"),
    )
    Path(key).write_bytes(encrypted)
    [fault] = faults(valkey(f"cert_file={cert}&key_file={key}"))
    assert "unencrypted" in fault


def test_secrets_that_all_can_read_are_found_and_certificates_are_none(tmp_path: Path) -> None:
    for name in ("password", "ca", "secret"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o644)
    (tmp_path / "secret").chmod(0o640)
    address = valkey(
        f"password_file={tmp_path}/password&ca_file={tmp_path}/ca&secret_file={tmp_path}/secret"
        "&key_file=/none&cert_file=/none"
    )
    assert list(readable_by_all(address)) == [f"password_file={tmp_path}/password"]
