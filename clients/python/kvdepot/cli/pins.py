"""The command `pins`: the prompts that stay in L1."""

from __future__ import annotations

import json
import time
from datetime import UTC
from typing import Annotated

import typer

from kvdepot import Credentials, DepotClient
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.tables import Cell, Column, print_rows
from kvdepot.cli.terminal import as_json, printable, readable_size
from kvdepot.v1 import cache_pb2

PAGE_SIZE = 1_000
MAX_PAGES = 100

_COLUMNS = (
    Column("PIN"),
    Column("TENANT", drop=3),
    Column("MODEL", drop=2, min_width=12),
    Column("TOKENS", right=True),
    Column("CHUNKS", right=True, drop=4),
    Column("BYTES", right=True),
    Column("HITS", right=True),
    Column("ENDS IN", right=True),
)


@takes_credentials
def pins(
    *,
    address: Address = DEFAULT_ADDRESS,
    tenant: Annotated[str, typer.Option(help="Only pins of this tenant. Others' are for admins.")] = "",
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """List the pinned prompts, the oldest first. An admin sees those of all tenants."""
    with connected(address, credentials) as depot:
        found = _all(depot, tenant)
    if json_output:
        print(json.dumps([as_json(each) for each in found], indent=2))
        return
    print_rows(_COLUMNS, [_row(each) for each in found], title="Pins")


def _all(depot: DepotClient, tenant: str) -> list[cache_pb2.Pin]:
    """Return the pins of all pages.

    Raises: DepotError.
    """
    found: list[cache_pb2.Pin] = []
    token = ""
    for _ in range(MAX_PAGES):
        page = depot.list_pins(page_size=PAGE_SIZE, page_token=token, tenant=tenant)
        found += page.pins
        token = page.next_page_token
        if not token:
            break
    return found


def _row(pin: cache_pb2.Pin) -> list[Cell]:
    left_seconds = max(0.0, pin.expire_time.ToDatetime(UTC).timestamp() - time.time())
    return [
        pin.pin_id,
        printable(pin.tenant),
        printable(pin.model_name),
        f"{pin.num_tokens:,}",
        f"{pin.num_chunks:,}",
        readable_size(pin.num_bytes),
        f"{pin.num_hits:,}",
        f"{left_seconds:,.0f} s",
    ]
