"""The file of tenants: its format, and the checks of its content."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from service.access.reload import MAX_FILE_BYTES, read_file
from service.access.tenants import Tenant, TenantLimits, Tenants, Token, TokenHash
from service.units import format_size, parse_size

NAME = re.compile(r"[a-z0-9]([-a-z0-9_.]{0,61}[a-z0-9])?")
TOKEN_HASH = re.compile(r"[0-9a-f]{64}")

Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Count = Annotated[int, Field(ge=1, strict=True)]


class BadTenants(Exception):
    """The file can't be used. The message has a line for each fault, and never quotes what may be a token."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _TokenPart(_Part):
    sha256: str
    expire_time: AwareDatetime | None = None

    @field_validator("sha256")
    @classmethod
    def _hash(cls, value: str) -> str:
        if not TOKEN_HASH.fullmatch(value):
            raise ValueError(
                "is not a SHA-256 of 64 lower case hexadecimal digits; a token itself is never written here"
            )
        return value


class _LimitsPart(_Part):
    max_concurrent_rpcs: Count | None = None
    max_attachments: Count | None = None
    max_bytes_in_flight: Size | None = None
    max_pinned: Size | None = None


class _TenantPart(_Part):
    name: str
    admin: bool = Field(False, strict=True)
    tokens: tuple[_TokenPart, ...] = ()
    certificates: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = ()
    limits: _LimitsPart = _LimitsPart()
    l1_share: Size | None = None
    disk_share: Size | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("is not 1 to 63 lower case letters, digits and, between these, - _ .")
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"sha256": each} if isinstance(each, str) else each for each in value]


class _FilePart(_Part):
    tenants: tuple[_TenantPart, ...]


def read_tenants(path: Path, defaults: TenantLimits, l1_bytes: int, disk_bytes: int | None = None) -> Tenants:
    """Return the tenants of a YAML file, or of a JSON file if its name ends with `.json`: see `parse_tenants`.

    Raises: BadTenants.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise BadTenants(f"{path}: {error.strerror}") from error
    return parse_tenants(data, defaults, l1_bytes, disk_bytes, is_json=path.suffix == ".json")


def parse_tenants(
    data: bytes, defaults: TenantLimits, l1_bytes: int, disk_bytes: int | None = None, *, is_json: bool = False
) -> Tenants:
    """Return the tenants of a file's content. A tenant without limits gets `defaults`.

    L1 has `l1_bytes`, and the smallest disk tier `disk_bytes`. None: there is no disk tier.

    Raises: BadTenants.
    """
    if len(data) > MAX_FILE_BYTES:
        raise BadTenants(f"the file is larger than {MAX_FILE_BYTES} bytes")
    try:
        content = json.loads(data) if is_json else yaml.safe_load(data)
    except (ValueError, yaml.YAMLError, RecursionError):
        # The messages of the parsers quote the text around the fault, which may be a secret.
        raise BadTenants(f"the file is not {'JSON' if is_json else 'YAML'}") from None
    try:
        parts = _FilePart.model_validate(content).tenants
    except ValidationError as error:
        raise BadTenants("\n".join(map(_fault, error.errors(include_input=False, include_url=False)))) from None
    _check(parts, l1_bytes, disk_bytes)
    return Tenants(_tenant(part, defaults) for part in parts)


def _tenant(part: _TenantPart, defaults: TenantLimits) -> Tenant:
    return Tenant(
        name=part.name,
        is_admin=part.admin,
        limits=_limits(part.limits, defaults),
        tokens=tuple(
            Token(hash=TokenHash(bytes.fromhex(token.sha256)), expire_time=_seconds(token.expire_time))
            for token in part.tokens
        ),
        certificates=part.certificates,
        l1_share_bytes=part.l1_share or 0,
        disk_share_bytes=part.disk_share or 0,
    )


def _limits(part: _LimitsPart, defaults: TenantLimits) -> TenantLimits:
    given = part.model_dump(exclude_none=True)
    if "max_pinned" in given:
        given["max_pinned_bytes"] = given.pop("max_pinned")
    return replace(defaults, **given)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else float("inf")


def _check(parts: Sequence[_TenantPart], l1_bytes: int, disk_bytes: int | None) -> None:
    """Check that each tenant has credentials, that no two share a name or credentials, and that all shares fit.

    Raises: BadTenants.
    """
    if not parts:
        raise BadTenants("tenants: there are none")
    faults = [
        f"tenants[{n}]: {part.name!r} has neither tokens nor certificates"
        for n, part in enumerate(parts)
        if not (part.tokens or part.certificates)
    ]
    for what, values in (
        ("the name", [part.name for part in parts]),
        ("the certificate", [name for part in parts for name in part.certificates]),
        ("the token", [token.sha256 for part in parts for token in part.tokens]),
    ):
        faults += [f"tenants: {what} {value!r} stands in it twice" for value, n in Counter(values).items() if n > 1]
    faults += [
        f"tenants[{n}].limits.max_pinned: {format_size(part.limits.max_pinned)} is more than half of L1, which has "
        f"{format_size(l1_bytes)}"
        for n, part in enumerate(parts)
        if part.limits.max_pinned is not None and 2 * part.limits.max_pinned > l1_bytes
    ]
    share_bytes = sum(part.l1_share or 0 for part in parts)
    if share_bytes > l1_bytes:
        faults.append(f"tenants: the l1_share of all is {format_size(share_bytes)}, and L1 has {format_size(l1_bytes)}")
    disk_share_bytes = sum(part.disk_share or 0 for part in parts)
    if disk_share_bytes and disk_bytes is None:
        faults.append("tenants: there is a disk_share, and no disk tier")
    elif disk_bytes is not None and disk_share_bytes > disk_bytes:
        faults.append(
            f"tenants: the disk_share of all is {format_size(disk_share_bytes)}, and the smallest disk tier has "
            f"{format_size(disk_bytes)} for chunks"
        )
    if faults:
        raise BadTenants("\n".join(faults))


def _fault(error: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    return f"{where or 'the file'}: {error['msg'].removeprefix('Value error, ')}"
