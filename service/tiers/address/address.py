"""The address of a tier: a URL, whose query has the tier's options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from service.tiers.address.options import OPTIONS

KINDS: Final = tuple(OPTIONS)
MAX_TIERS: Final = 8
"""Each chunk in L1 has a bit for each tier."""
DEFAULT_PORTS: Final = {
    **dict.fromkeys(("valkey", "valkeys", "redis", "rediss"), 6379),
    "mooncake": 50051,
}
_SECRETS: Final = {"password": "password_file", "secret": "secret_file"}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_SIMILARITY: Final = 0.6  # difflib's ratio, from 0 to 1


class BadAddress(ValueError):
    """The address of a tier is wrong. The message has the address without its query, which may hold a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAddress:
    """A parsed address. `name` is unique among the tiers of a depot, and stands in metrics and logs.

    `url` is the whole address: `parse` makes the same of it again. `host` is empty and `port` None for a kind that has
    no server of its own; for others `port` is the kind's usual one where the URL has none. `path` has no escapes.
    `options` holds what is given and the defaults of what is not. Values are as OPTIONS says: sizes in bytes and
    numbers are int, switches bool, and others str.
    """

    kind: str
    name: str
    url: str = ""
    host: str = ""
    port: int | None = None
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> TierAddress:
        """Return the address of a URL.

        Raises: BadAddress.
        """
        parts, port = _split(url)
        shown = _shown(parts)
        given = _given(parts, shown)
        name = given.pop("name", parts.scheme)
        if not _NAME.fullmatch(name) or name == "l1":
            raise BadAddress(
                f"{shown}: name is not of at most 32 small letters, digits, dots, dashes and underscores, or it is l1"
            )
        options = _options(parts.scheme, given, shown)
        path = unquote(parts.path)
        _check_place(parts, path, shown)
        if options.get("cluster") and path.strip("/0"):
            raise BadAddress(f"{shown}: a cluster has no other database than 0")
        return cls(
            kind=parts.scheme,
            name=name,
            url=url,
            host=parts.hostname or "",
            port=port if port is not None else DEFAULT_PORTS.get(parts.scheme),
            path=path,
            options=options,
        )

    def __str__(self) -> str:
        """Return the address without its options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}{f':{self.port}' if self.port is not None else ''}{self.path}"


def parse_all(urls: Iterable[str]) -> tuple[TierAddress, ...]:
    """Return the addresses of the tiers of one depot, in order.

    Raises: BadAddress: also if two tiers have one name or one place.
    """
    addresses = tuple(map(TierAddress.parse, urls))
    if len(addresses) > MAX_TIERS:
        raise BadAddress(f"{len(addresses)} tiers are more than {MAX_TIERS}")
    by_name: dict[str, TierAddress] = {}
    by_place: dict[tuple[Any, ...], TierAddress] = {}
    for each in addresses:
        place = each.kind, each.host, each.port, each.path.rstrip("/"), each.options.get("prefix")
        if place in by_place:
            raise BadAddress(f"{each}: its place is another tier's, too")
        if each.name in by_name:
            raise BadAddress(f"{each}: {by_name[each.name]} has the name {each.name}, too; add name= to one of them")
        by_name[each.name] = by_place[place] = each
    return addresses


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Return the parts of a URL, and its port."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadAddress("an address has a wrong host or port") from error
    if parts.scheme not in KINDS or "://" not in url:
        schemes = ", ".join(f"{kind}://" for kind in KINDS)
        meant = get_close_matches(parts.scheme, KINDS, n=1, cutoff=_SIMILARITY)
        hint = f"; is {meant[0]}:// meant?" if meant and parts.scheme not in KINDS else ""
        raise BadAddress(f"an address begins with one of {schemes}{hint}")
    shown = _shown(parts)
    if parts.username is not None or parts.password is not None:
        raise BadAddress(
            f"{shown}: the log and the status show addresses, so that they have no user and no password; "
            "name files with options (user and password_file, or credentials_file)"
        )
    if parts.fragment:
        raise BadAddress(f"{shown}: has a # in it; write %23")
    return parts, port


def _shown(parts: SplitResult) -> str:
    """Return an address without what may be secret: user, password and options."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _given(parts: SplitResult, shown: str) -> dict[str, str]:
    """Return the options as the query has them."""
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError as error:
        raise BadAddress(f"{shown}: options are like ?name=value&name=value") from error
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise BadAddress(f"{shown}: {name} is given twice")
        given[name] = value
    return given


def _options(kind: str, given: Mapping[str, str], shown: str) -> dict[str, Any]:
    """Return the values of all options, with the defaults."""
    known = OPTIONS[kind]
    values = {name: option.default for name, option in known.items() if option.default is not None}
    for name, text in given.items():
        if name not in known:
            raise BadAddress(f"{shown}: {_unknown(name, kind)}")
        try:
            values[name] = known[name].parse(text)
        except ValueError as error:
            value = "" if "@" in text else f"={text}"  # it may have a password
            raise BadAddress(f"{shown}: {name}{value} {error}") from error
    for name, option in known.items():
        if option.is_required and name not in given:
            raise BadAddress(f"{shown}: {name} is missing, such as ?{name}=200GiB")
    if bool(values.get("cert_file")) != bool(values.get("key_file")):
        raise BadAddress(f"{shown}: cert_file and key_file need each other")
    return values


def _unknown(name: str, kind: str) -> str:
    """Return what is wrong with an option that the kind does not have. Its value may be a secret."""
    if name in _SECRETS and _SECRETS[name] in OPTIONS[kind]:
        return f"{name} would be shown with the address; write it into a file, and name that with {_SECRETS[name]}"
    others = [f"{other}://" for other, options in OPTIONS.items() if name in options]
    if others:
        return f"{name} is no option of {kind}://, but of {', '.join(others)}"
    meant = get_close_matches(name, ("name", *OPTIONS[kind]), n=1, cutoff=_SIMILARITY)
    return f"there is no option {name}" + (f"; is {meant[0]} meant?" if meant else "")


def _check_place(parts: SplitResult, path: str, shown: str) -> None:
    """Raise BadAddress if the part in front of the options does not fit the kind."""
    kind, host = parts.scheme, parts.netloc
    if kind == "disk":
        if host:
            raise BadAddress(f"{shown}: the path is not absolute; write disk:///folder, with three slashes")
        if not path.startswith("/") or path.strip("/") == "" or ".." in PurePosixPath(path).parts or "\0" in path:
            raise BadAddress(f"{shown}: is no folder for the tier, such as disk:///var/lib/kvdepot")
    elif kind == "s3":
        if not _BUCKET.fullmatch(host):
            raise BadAddress(f"{shown}: is not like s3://bucket/prefix; a server goes into the option endpoint")
    elif not parts.hostname:
        raise BadAddress(f"{shown}: has no host")
    elif kind == "mooncake":
        if path.strip("/"):
            raise BadAddress(f"{shown}: mooncake:// has no path")
    elif not re.fullmatch(r"(/[0-9]{0,5})?", path):
        raise BadAddress(f"{shown}: the path is no number of a database, such as /0")
