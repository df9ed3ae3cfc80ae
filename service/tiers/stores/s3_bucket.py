"""How a bucket is reached: endpoint, time-outs, and credentials from a file or from where obstore looks for them."""

from __future__ import annotations

import configparser
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from service.tiers.address.address import TierAddress
from service.tiers.store import StoreUnusable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential
    from obstore.store import S3Store as Bucket

DEFAULT_REGION = "us-east-1"
CONNECT_SECONDS = 0.5
REREAD_SECONDS = 300
SECTION = "default"
_HAS_SECTIONS = re.compile(r"^\s*\[", re.MULTILINE)


class CredentialsFile:
    """A file of credentials, as AWS's tools have it: `[default]` and keys, or keys alone. It may change."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self) -> S3Credential:
        """Read the file. obstore calls this again when the credentials are some minutes old.

        Raises: StoreUnusable.
        """
        try:
            text = Path(self._path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreUnusable(f"credentials_file: {error}") from error
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(text if _HAS_SECTIONS.search(text) else f"[{SECTION}]\n{text}")
        except configparser.Error:
            # The error's own text quotes the file, and a log may have no secret.
            raise StoreUnusable(f"credentials_file: {self._path} has no lines of key = value") from None
        section = dict(parser[SECTION]) if parser.has_section(SECTION) else {}
        key, secret = section.get("aws_access_key_id"), section.get("aws_secret_access_key")
        if not key or not secret:
            needed = "aws_access_key_id and aws_secret_access_key"
            raise StoreUnusable(f"credentials_file: {self._path} has no {needed} in [{SECTION}]")
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": section.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + timedelta(seconds=REREAD_SECONDS),
        }


def open_bucket(address: TierAddress, call_seconds: float) -> Bucket:
    """Return the bucket of an address. A request to it takes at most `call_seconds`. Nothing is sent yet.

    Raises: StoreUnusable: a file can't be read, or an option is wrong.
    """
    from obstore.exceptions import BaseError
    from obstore.store import S3Store as Bucket

    options = address.options
    endpoint = options.get("endpoint", "")
    is_path_style = options.get("path_style", bool(endpoint))
    config: S3Config = {
        "virtual_hosted_style_request": not is_path_style,
        # The record's checksum covers the bytes, and a second pass over them would cost as much as sending them.
        "unsigned_payload": True,
    }
    if region := options.get("region"):
        config["region"] = region
    elif endpoint:
        config["region"] = DEFAULT_REGION
    if endpoint:
        config["endpoint"] = endpoint if is_path_style else endpoint.replace("://", f"://{address.host}.")
    client: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, call_seconds / 2)),
        "timeout": timedelta(seconds=0.6 * call_seconds),
    }
    if ca_file := options.get("ca_file"):
        client["root_certificate"] = _read(ca_file)
    provider = None
    if path := options.get("credentials_file"):
        provider = CredentialsFile(path)
        provider()
    try:
        return Bucket(
            address.host,
            config=config,
            client_options=client,
            # A second try begins early enough to end in time. It is for connections that the server closed.
            retry_config={
                "max_retries": 1,
                "retry_timeout": timedelta(seconds=0.3 * call_seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=20),
                    "max_backoff": timedelta(milliseconds=100),
                    "base": 2,
                },
            },
            credential_provider=provider,
        )
    except BaseError as error:
        raise StoreUnusable(str(error).partition("\n")[0]) from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreUnusable(f"ca_file: {error}") from error
