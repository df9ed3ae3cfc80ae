"""The command `explain`: why a prompt is not in a depot, or why a session missed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from kvdepot import Credentials, DepotClient, hash_prefix, token_prefix
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.explanation import explained, explained_session
from kvdepot.cli.prompt_file import STANDARD_INPUT, BadPrompt, block_hashes, read_text, token_ids
from kvdepot.cli.terminal import as_json, fail, print_text
from kvdepot.v1 import cache_pb2

PAGE_SIZE = 1_000
MAX_PAGES = 10  # to look for a session whose instance is not given


@takes_credentials
def explain(
    *,
    prompt: Annotated[str, typer.Argument(metavar="FILE", help="Token ids of the prompt; - is standard input.")] = "",
    address: Address = DEFAULT_ADDRESS,
    instance: Annotated[str, typer.Option(help="The instance that would look up.")] = "",
    model: Annotated[str, typer.Option(help="Its model, instead of the instance.")] = "",
    salt: Annotated[str, typer.Option(help="The prompt's salt.")] = "",
    adapter: Annotated[str, typer.Option(help="The prompt's adapter.")] = "",
    hash_block_size: Annotated[
        int | None, typer.Option(min=1, help="FILE has block hashes in hex, each of a block of so many tokens.")
    ] = None,
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
    if bool(instance) == bool(model):
        fail("give --instance or --model: which engine would look up?", 2)
    with _reading(prompt or STANDARD_INPUT):
        if not prompt and sys.stdin.isatty():
            raise BadPrompt("this is a terminal: give FILE, or - to type token ids until Ctrl-D")
        text = read_text(prompt or STANDARD_INPUT)
        if hash_block_size:
            prefix = hash_prefix(block_hashes(text), hash_block_size, cache_salt=salt, adapter=adapter)
        else:
            prefix = token_prefix(token_ids(text), cache_salt=salt, adapter=adapter)
    with connected(address, credentials) as depot:
        answer = depot.explain_prefix(prefix, instance_id=instance, model_name=model, tenant=tenant)
        whole = _in_whole_chunks(prefix, answer.chunk_size)
        if answer.incomparable_chunks and whole is not None:
            by_chunks = depot.explain_prefix(whole, instance_id=instance, model_name=model, tenant=tenant)
            answer = max(by_chunks, answer, key=lambda each: each.matched_tokens)
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    else:
        print_text(explained(answer, adapter))


def _in_whole_chunks(prefix: cache_pb2.Prefix, chunk_size: int) -> cache_pb2.Prefix | None:
    """Return the prompt with one hash for each chunk, as vLLM's connector sends it. None: it has no more than that."""
    blocks = chunk_size // prefix.hash_block_size if prefix.hash_block_size else 1
    if blocks == 1 or chunk_size % prefix.hash_block_size:
        return None
    hashes = prefix.block_hashes[blocks - 1 :: blocks]
    if not hashes:
        return None
    return hash_prefix(hashes, chunk_size, cache_salt=prefix.cache_salt, adapter=prefix.adapter)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """End the command in one line if the prompt can't be read."""
    name = "standard input" if path == STANDARD_INPUT else path
    try:
        yield
    except BadPrompt as error:
        fail(f"{name}: {error}", 2)
    except OSError as error:
        fail(f"{name}: {error.strerror}", 2)


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
