"""The options of a tier's address: which there are for each kind, what they take, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.units import format_duration, format_size, parse_duration, parse_size

_SWITCH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option. `takes` and `meaning` are for people. `default` is None if the address has no value without it.

    `parse` returns the value of a text, or raises ValueError.
    """

    takes: str
    meaning: str
    parse: Callable[[str], Any]
    default: Any = None
    is_required: bool = False
    is_secret_file: bool = False
    is_file: bool = False

    @property
    def shown_default(self) -> str:
        """The default as the address would have it. Empty: there is none."""
        if self.default is None:
            return ""
        if self.takes == "size":
            return format_size(self.default)
        if self.takes == "duration":
            return format_duration(self.default)
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def _text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _size(at_least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = parse_size(text)
        if value < at_least:
            raise ValueError(f"is not at least {format_size(at_least)}")
        if value > 1 << 60:
            raise ValueError("is above 1 EiB")
        return value

    return parse


def _number(at_least: int, at_most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and at_least <= int(text[:10]) <= at_most):
            raise ValueError(f"is no number from {at_least} to {at_most}")
        return int(text)

    return parse


def _duration(at_least: float, at_most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = parse_duration(text)
        if not at_least <= value <= at_most:
            raise ValueError(f"is not from {format_duration(at_least)} to {format_duration(at_most)}")
        return value

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError("is neither true nor false")
    return _SWITCH[text.lower()]


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"is none of {', '.join(values)}")
        return text

    return parse


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")) or len(text.partition("://")[2]) == 0:
        raise ValueError("is not an address such as https://minio.example:9000")
    if "@" in text or "?" in text:
        raise ValueError("has credentials or a query; credentials belong into credentials_file")
    return text


def _file(meaning: str) -> Option:
    return Option(takes="file", meaning=meaning, parse=_text, is_file=True)


def _secret_file(meaning: str) -> Option:
    return Option(takes="file", meaning=meaning, parse=_text, is_file=True, is_secret_file=True)


_ALL: Final[Mapping[str, Option]] = {
    "read_workers": Option(
        takes="number, 1 to 64",
        meaning="I/O workers that read",
        parse=_number(1, 64),
        default=2,
    ),
    "write_workers": Option(
        takes="number, 1 to 64",
        meaning="I/O workers that write",
        parse=_number(1, 64),
        default=2,
    ),
    "queue": Option(
        takes="size",
        meaning="most bytes of chunks that wait to be written; the oldest are dropped then",
        parse=_size(1),
        default=256 << 20,
    ),
    "write_budget": Option(
        takes="size",
        meaning="most bytes that are written in a day, for SSDs that wear out; 0: no limit",
        parse=_size(0),
        default=0,
    ),
    "secret_file": _secret_file(
        "a secret of 32 bytes, raw or as 64 hexadecimal digits; depots without it can neither make chunks that this "
        "depot takes, nor use its chunks"
    ),
}

_REMOTE: Final[Mapping[str, Option]] = {
    "answer": Option(
        takes="duration",
        meaning="how long a lookup waits for the tier to say what it has, 400ms at most; engines wait as long",
        parse=_duration(0.001, 0.4),
        default=0.02,
    ),
    **_ALL,
}

_CA_FILE: Final = _file("PEM file of the authorities that sign servers' certificates; without it, the system's")

_VALKEY: Final[Mapping[str, Option]] = {
    "user": Option(takes="text", meaning="user of the server's access list", parse=_text),
    "password_file": _secret_file("its password"),
    "prefix": Option(takes="text", meaning="what each key begins with", parse=_text, default="kvdepot:"),
    "cluster": Option(
        takes="switch", meaning="the server is one of a cluster, whose others it names", parse=_switch, default=False
    ),
}
_VALKEY_TLS: Final[Mapping[str, Option]] = {
    "ca_file": _CA_FILE,
    "cert_file": _file("PEM file of this depot's certificate"),
    "key_file": _secret_file("PEM file of the certificate's private key"),
}

OPTIONS: Final[Mapping[str, Mapping[str, Option]]] = {
    "disk": {
        "size": Option(
            takes="size", meaning="space that the tier takes at its start", parse=_size(16 << 20), is_required=True
        ),
        **_ALL,
    },
    "s3": {
        "endpoint": Option(takes="URL", meaning="the server; without it, AWS", parse=_http_url),
        "region": Option(takes="text", meaning="the bucket's region", parse=_text),
        "credentials_file": _secret_file("access key and secret; without it, those of the depot's environment"),
        "path_style": Option(
            takes="switch",
            meaning="the bucket is in the path of requests, and not in the host's name; by default with an endpoint",
            parse=_switch,
        ),
        "ca_file": _CA_FILE,
        **_REMOTE,
    },
    "valkey": {**_VALKEY, **_REMOTE},
    "valkeys": {**_VALKEY, **_VALKEY_TLS, **_REMOTE},
    "redis": {**_VALKEY, **_REMOTE},
    "rediss": {**_VALKEY, **_VALKEY_TLS, **_REMOTE},
    "mooncake": {
        "segment": Option(
            takes="size",
            meaning="memory of this machine that the depot lends to the store; 0: none",
            parse=_size(0),
            is_required=True,
        ),
        "protocol": Option(
            takes="tcp or rdma", meaning="how chunks travel", parse=_one_of("tcp", "rdma"), default="tcp"
        ),
        "device": Option(takes="text", meaning="RDMA device, such as mlx5_0; without it, all", parse=_text),
        "local_host": Option(
            takes="text", meaning="address at which other nodes reach this one; without it, found", parse=_text
        ),
        **_REMOTE,
    },
}
"""The options of each kind of address by name. The option `name`, which each address has, is not among them."""
