"""The kinds of tiers: which store each has, and what its I/O workers may know of the depot's environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.tiers.store import Capabilities

COMMON_VARIABLES = (
    *("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ"),
    *("SSL_CERT_DIR", "SSL_CERT_FILE"),
    *("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKind:
    """A kind of store. `entry` is `module:class` of it, which only I/O workers import.

    `capabilities` are those of the class. `variables` are beginnings of the names of variables that it may have besides
    the common ones.
    """

    entry: str
    capabilities: Capabilities
    variables: tuple[str, ...] = ()

    def environment(self, of_depot: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that an I/O worker of this kind gets: no credentials of another tier."""
        return {
            name: value
            for name, value in of_depot.items()
            if name in COMMON_VARIABLES or (self.variables and name.startswith(self.variables))
        }


_VALKEY = StoreKind(entry="service.tiers.stores.valkey:ValkeyStore", capabilities=Capabilities())

STORES: Mapping[str, StoreKind] = {
    "disk": StoreKind(entry="service.tiers.stores.disk:DiskStore", capabilities=Capabilities(is_local=True)),
    "s3": StoreKind(
        entry="service.tiers.stores.s3:S3Store",
        capabilities=Capabilities(),
        variables=("AWS_",),
    ),
    "valkey": _VALKEY,
    "valkeys": _VALKEY,
    "redis": _VALKEY,
    "rediss": _VALKEY,
    "mooncake": StoreKind(
        entry="service.tiers.stores.mooncake:MooncakeStore",
        capabilities=Capabilities(needs_owner=True),
        variables=("MC_", "GLOG_", "MOONCAKE_"),
    ),
}
"""By the kind of the address."""
