"""Gathers the facts of the tiers behind L1: their servers, their files, their packages. It changes nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from urllib.parse import urlsplit

from service.doctor import disk_tiers, tier_opening
from service.doctor.facts import TierFacts
from service.settings import Settings
from service.tiers.address import option_files
from service.tiers.address.address import TierAddress

TIMEOUT_SECONDS = 1.0
RESOLVING_SECONDS = 2.0
"""What a name may take in addition. The resolver has no timeout that a caller can set."""

PACKAGES = {"s3": ("obstore", "kvdepot[s3]"), "mooncake": ("mooncake", "kvdepot[mooncake]")}
"""The module that a kind needs, and what to install for it."""


def all_of(settings: Settings, environment: Mapping[str, str]) -> tuple[TierFacts, ...]:
    """Return the facts of all tiers. The servers are tried at once, for some seconds at most."""
    addresses = settings.tier_addresses()
    errors = _connect_all(filter(None, map(server_of, addresses)))
    facts = tuple(_facts(address, errors) for address in addresses)
    worth_opening = [
        number
        for number, each in enumerate(facts)
        if each.server and not (each.server_error or each.file_faults or each.missing_package)
    ]
    open_errors = tier_opening.open_errors([addresses[number] for number in worth_opening], environment)
    by_number = dict(zip(worth_opening, open_errors, strict=True))
    return tuple(replace(each, open_error=by_number.get(number, "")) for number, each in enumerate(facts))


def server_of(address: TierAddress) -> tuple[str, int] | None:
    """Return host and port of a tier's server. None: it has none."""
    if address.kind == "disk":
        return None
    if address.kind != "s3":
        return address.host, address.port or 0
    if endpoint := address.options.get("endpoint"):
        url = urlsplit(endpoint)
        return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    region = address.options.get("region")
    return (f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com"), 443


def _facts(address: TierAddress, errors: dict[tuple[str, int], str]) -> TierFacts:
    server = server_of(address)
    module, package = PACKAGES.get(address.kind, ("socket", ""))
    return TierFacts(
        address=address,
        file_faults=tuple(option_files.faults(address)),
        files_readable_by_all=tuple(option_files.readable_by_all(address)),
        missing_package="" if find_spec(module) is not None else package,
        server=_shown(*server) if server is not None else "",
        server_error=errors[server] if server is not None else "",
        disk=disk_tiers.facts_of(address) if address.kind == "disk" else None,
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connect_all(servers: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Connect to each server once. Return why it does not answer; empty: it does."""
    errors = dict.fromkeys(servers, f"no answer within {TIMEOUT_SECONDS + RESOLVING_SECONDS:g} s")

    def connect(server: tuple[str, int]) -> None:
        try:
            socket.create_connection(server, timeout=TIMEOUT_SECONDS).close()
            errors[server] = ""
        except (OSError, UnicodeError) as error:
            errors[server] = getattr(error, "strerror", None) or str(error)

    # Daemons, because a thread that waits for the resolver can't be ended.
    threads = [threading.Thread(target=connect, args=(server,), daemon=True) for server in tuple(errors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_SECONDS + RESOLVING_SECONDS)
    return dict(errors)
