"""The command `prefetch`: loads a prompt from slower tiers into L1, ahead of its request."""

from __future__ import annotations

import json

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
from kvdepot.cli.pin import not_there
from kvdepot.cli.readable import seconds_text
from kvdepot.cli.terminal import as_json, counted, print_text, printable, readable_size
from kvdepot.v1 import cache_pb2


@takes_credentials
def prefetch(
    *,
    prompt: PromptFile = "",
    address: Address = DEFAULT_ADDRESS,
    instance: Instance = "",
    model: Model = "",
    salt: Salt = "",
    adapter: Adapter = "",
    hash_block_size: HashBlockSize = None,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Begin to load a prompt from the tiers behind L1 into L1, and say what is there.

    FILE is as for `explain`. The command does not wait for the loads. Nothing is leased or pinned: look up the prompt
    soon, or `pin` it.
    """
    prefix = read_prefix(prompt, instance, model, salt, adapter, hash_block_size)
    with connected(address, credentials) as depot:
        _, prefix = explained_prefix(depot, prefix, instance, model)
        answer = depot.prefetch(prefix, instance_id=instance, model_name=model)
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    else:
        print_text("\n".join(_lines(answer)))


def _lines(answer: cache_pb2.PrefetchResponse) -> list[str]:
    lines = [f"{counted(answer.l1_tokens, 'token')} in L1, {answer.l2_tokens:,} on their way"]
    if answer.loading_bytes:
        tiers = ", ".join(
            f"{tokens:,} from {printable(name)}" for name, tokens in sorted(answer.loading_tokens.items())
        )
        took = ""
        if answer.HasField("estimated_duration"):
            seconds = answer.estimated_duration.ToNanoseconds() / 1e9
            took = f", in about {seconds_text(seconds)}"
        lines.append(f"loading {readable_size(answer.loading_bytes)}: {tiers}{took}")
    if answer.HasField("miss"):
        lines.append(not_there(answer.miss))
    return lines
