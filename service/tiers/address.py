"""The address of a tier: a URL, whose query has the tier's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

KINDS = ("disk", "s3", "valkey", "valkeys", "redis", "rediss", "mooncake")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAddress:
    """A parsed address. `name` is unique among the tiers of a depot, and stands in metrics and logs.

    `host` is empty and `port` None where the URL has none. `options` are texts, as the query has them.
    """

    kind: str
    name: str
    host: str = ""
    port: int | None = None
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> TierAddress:
        """Return the address of a URL.

        Raises: ValueError.
        """
        parts = urlsplit(url)
        if parts.scheme not in KINDS:
            raise ValueError(f"{url!r} begins with none of {', '.join(f'{kind}://' for kind in KINDS)}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        return cls(
            kind=parts.scheme,
            name=options.pop("name", parts.scheme),
            host=parts.hostname or "",
            port=parts.port,
            path=parts.path,
            options=options,
        )
