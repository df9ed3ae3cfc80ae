"""The command `explain`: why a prompt is not in a depot, or why a session missed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvdepot import Credentials, DepotClient
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
from kvdepot.cli.explanation import explained, explained_session
from kvdepot.cli.terminal import as_json, fail, print_text
from kvdepot.v1 import cache_pb2

PAGE_SIZE = 1_000
MAX_PAGES = 10  # to look for a session whose instance is not given


@takes_credentials
def explain(
    *,
    prompt: PromptFile = "",
    address: Address = DEFAULT_ADDRESS,
    instance: Instance = "",
    model: Model = "",
    salt: Salt = "",
    adapter: Adapter = "",
    hash_block_size: HashBlockSize = None,
    session: Annotated[str, typer.Option(help="Explain the last miss of this session, instead of a prompt.")] = "",
    tenant: Annotated[str, typer.Option(help="The tenant of the instance. Others' are for admins.")] = "",
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Tell which chunk of a prompt is missing, since when, and why. It takes no lease and changes nothing.

    The prompt is a JSON list of token ids, or numbers with spaces between them, in FILE or on standard input. vLLM's
    connector stores by vLLM's block hashes: for its prompts, give --hash-block-size and the hashes, or --session.
    """
    if session:
        if prompt or model or salt or adapter or hash_block_size:
            fail("--session explains what a session remembers: give it with --instance alone", 2)
        with connected(address, credentials) as depot:
            summary = _session(depot, instance, session, tenant)
        summary.ClearField("operations")
        if json_output:
            print(json.dumps({"session": as_json(summary)}, indent=2))
        else:
            print_text(explained_session(summary))
        return
    prefix = read_prefix(prompt, instance, model, salt, adapter, hash_block_size)
    with connected(address, credentials) as depot:
        answer, _ = explained_prefix(depot, prefix, instance, model, tenant)
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    else:
        print_text(explained(answer, adapter))


def _session(depot: DepotClient, instance: str, session: str, tenant: str) -> cache_pb2.SessionSummary:
    """Return a session, of the only instance that has it if none is given.

    Raises: DepotError.
    """
    if instance:
        return depot.get_session(instance, session, tenant=tenant).session
    instances: set[str] = set()
    token = ""
    for _ in range(MAX_PAGES):
        page = depot.list_sessions(page_size=PAGE_SIZE, page_token=token, tenant=tenant)
        instances |= {each.instance_id for each in page.sessions if each.session_id == session}
        token = page.next_page_token
        if not token:
            break
    if len(instances) > 1:
        fail(f"several instances have a session {session}: give --instance {' or '.join(sorted(instances))}", 2)
    if not instances:
        fail(f"no session {session} is remembered; `kvdepot sessions` lists those that are")
    return depot.get_session(instances.pop(), session, tenant=tenant).session
