"""The command `unpin`: ends a pin before its time."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvdepot import Credentials
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.terminal import as_json, counted, fail


@takes_credentials
def unpin(
    pin_id: Annotated[str, typer.Argument(metavar="PIN", help="The id that `pin` and `pins` show.")],
    *,
    address: Address = DEFAULT_ADDRESS,
    tenant: Annotated[str, typer.Option(help="The tenant of the pin. Others' are for admins.")] = "",
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """End a pin before its time. Exits with 1 if there is no such pin."""
    with connected(address, credentials) as depot:
        answer = depot.unpin_prefix(pin_id, tenant=tenant)
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    if not answer.HasField("pin"):
        fail(f"there is no pin {pin_id}; it may have ended")
    if not json_output:
        ended = answer.pin
        print(f"unpinned {counted(ended.num_tokens, 'token')}, after {counted(ended.num_hits, 'hit')}")
