"""The command `clear`: removes chunks from a depot's cache."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from typing import Annotated

import typer

from kvdepot import Credentials, DepotClient
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.terminal import as_json, counted, fail, printable, readable_size
from kvdepot.v1 import admin_pb2

TIMEOUT_SECONDS = 60.0


@takes_credentials
def clear(
    *,
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="Only chunks of this model.")] = "",
    salt: Annotated[str | None, typer.Option(help="Only chunks with this salt; '' for those without one.")] = None,
    tenant: Annotated[str, typer.Option(help="Only chunks of this tenant.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also leased and pinned ones: leases and pins end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Remove chunks from the cache: all, or those that match every filter. In a terminal it asks first.

    Chunks that are leased, pinned or being retrieved stay, unless --force. Exits with 0 also if no chunk matches, with
    1 if the answer is no, with 2 if it can't ask.
    """
    what = _what(model, salt, tenant, force=force)
    if not yes:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            fail(f"this would remove {what}, and there is no terminal to ask at\nhint: give --yes", 2)
        if not typer.confirm(f"Remove {what} from {address}?"):
            fail("nothing was removed")
    with connected(address, credentials) as depot:
        cleared = depot.clear_cache(
            model_name=model, cache_salt=salt, tenant=tenant, force=force, timeout_seconds=TIMEOUT_SECONDS
        )
        nothing = not (cleared.num_cleared_chunks or cleared.num_kept_chunks or cleared.num_cleared_in_tiers)
        hint = _hint(depot, model) if nothing and model else ""
    if json_output:
        print(json.dumps(as_json(cleared), indent=2))
        return
    print(_summary(cleared))
    if hint:
        print(hint)


def _what(model: str, salt: str | None, tenant: str, *, force: bool) -> str:
    filters = [f"of model {printable(model)}"] if model else []
    if salt is not None:
        filters.append(f"with the salt {printable(salt)}" if salt else "without a salt")
    if tenant:
        filters.append(f"of tenant {printable(tenant)}")
    chunks = " ".join(["the chunks", *filters]) if filters else "all chunks"
    return f"{chunks}, also leased and pinned ones" if force else chunks


def _summary(cleared: admin_pb2.ClearCacheResponse) -> str:
    lines = [f"removed {counted(cleared.num_cleared_chunks, 'chunk')}, {readable_size(cleared.cleared_bytes)}"]
    if cleared.num_cleared_in_tiers:
        lines.append(f"removed {counted(cleared.num_cleared_in_tiers, 'chunk')} of the tiers behind L1")
    if cleared.num_revoked_leases:
        lines.append(f"ended {counted(cleared.num_revoked_leases, 'lease')}")
    if cleared.num_ended_pins:
        lines.append(f"ended {counted(cleared.num_ended_pins, 'pin')}")
    if cleared.num_kept_chunks:
        kept = counted(cleared.num_kept_chunks, "chunk")
        lines.append(f"kept {kept}, leased, pinned or being retrieved; --force removes what is kept")
    return "\n".join(lines)


def _hint(depot: DepotClient, model: str) -> str:
    """Return which models are attached, if no chunk was of the one that was given."""
    attached = sorted({instance.model_name for instance in depot.list_instances().instances})
    if not attached or model in attached:
        return f"no chunk is of model {printable(model)}"
    meant = get_close_matches(model, attached, 1)
    text = f"did you mean {meant[0]}?" if meant else f"attached are {', '.join(attached)}"
    return printable(f"no chunk is of model {model}: {text}")
