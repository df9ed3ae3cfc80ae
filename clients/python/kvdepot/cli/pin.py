"""The command `pin`: keeps the chunks of a prompt in L1 for a while."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Annotated

import typer

from kvdepot import Credentials
from kvdepot.cli.asked_prompt import (
    Adapter,
    HashBlockSize,
    Instance,
    Model,
    PromptFile,
    Salt,
    explained_prefix,
    read_prefix,
)
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.session_view import miss_reason
from kvdepot.cli.terminal import as_json, counted, print_text, printable, readable_size
from kvdepot.cli.times import seconds_of
from kvdepot.v1 import cache_pb2


@takes_credentials
def pin(
    *,
    prompt: PromptFile = "",
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it lasts without a lookup that finds it.")] = "1h",
    fixed: Annotated[bool, typer.Option("--fixed", help="Lookups do not put off its end.")] = False,
    address: Address = DEFAULT_ADDRESS,
    instance: Instance = "",
    model: Model = "",
    salt: Salt = "",
    adapter: Adapter = "",
    hash_block_size: HashBlockSize = None,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Keep a prompt in L1: `pin prompt.json --model llama --ttl 2h`. What a slower tier has is loaded.

    FILE is as for `explain`. The same prompt has one pin: a further call begins its time anew, and adds chunks that
    were stored since. Exits with 1 if nothing of the prompt is there.
    """
    ttl_seconds = seconds_of(ttl, "--ttl")
    prefix = read_prefix(prompt, instance, model, salt, adapter, hash_block_size)
    with connected(address, credentials) as depot:
        _, prefix = explained_prefix(depot, prefix, instance, model)
        answer = depot.pin_prefix(prefix, ttl_seconds, instance_id=instance, model_name=model, fixed_expire_time=fixed)
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    else:
        print_text("\n".join(_lines(answer)))
    if not answer.HasField("pin"):
        raise typer.Exit(1)


def _lines(answer: cache_pb2.PinPrefixResponse) -> list[str]:
    lines = []
    if answer.HasField("pin"):
        pinned = answer.pin
        until = pinned.expire_time.ToDatetime(UTC)
        again = " again" if answer.was_pinned else ""
        lines.append(
            f"pinned{again} {counted(pinned.num_tokens, 'token')}, {counted(pinned.num_chunks, 'chunk')}, "
            f"{readable_size(pinned.num_bytes)}, until {until:%Y-%m-%d %H:%M:%S} UTC"
        )
        lines.append(f"pin {pinned.pin_id}")
        if answer.l2_tokens:
            lines.append(f"{counted(answer.l2_tokens, 'token')} of these are on their way from slower tiers")
    if answer.HasField("miss"):
        lines.append(not_there(answer.miss))
    return lines


def not_there(miss: cache_pb2.Miss) -> str:
    """Return from where on a prompt is not there, and why, as a line."""
    detail = f": {printable(miss.detail)}" if miss.detail else ""
    return f"not there from token {miss.at_token:,} on, {miss_reason(miss.reason)}{detail}"
