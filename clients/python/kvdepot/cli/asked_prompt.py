"""The options of a command that is about one prompt: the prompt, and the engine that would look it up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from kvdepot import DepotClient, hash_prefix, token_prefix
from kvdepot.cli.prompt_file import STANDARD_INPUT, BadPrompt, block_hashes, read_text, token_ids
from kvdepot.cli.terminal import fail
from kvdepot.v1 import cache_pb2, observability_pb2

PromptFile = Annotated[str, typer.Argument(metavar="FILE", help="Token ids of the prompt; - is standard input.")]
Instance = Annotated[str, typer.Option(help="The instance that would look up.")]
Model = Annotated[str, typer.Option(help="Its model, instead of the instance.")]
Salt = Annotated[str, typer.Option(help="The prompt's salt.")]
Adapter = Annotated[str, typer.Option(help="The prompt's adapter.")]
HashBlockSize = Annotated[
    int | None, typer.Option(min=1, help="FILE has block hashes in hex, each of a block of so many tokens.")
]


def read_prefix(
    prompt: str, instance: str, model: str, salt: str, adapter: str, hash_block_size: int | None
) -> cache_pb2.Prefix:
    """Return the prompt. The command ends in one line if it can't be read, or if no engine is named."""
    if bool(instance) == bool(model):
        fail("give --instance or --model: which engine would look up?", 2)
    with _reading(prompt or STANDARD_INPUT):
        if not prompt and sys.stdin.isatty():
            raise BadPrompt("this is a terminal: give FILE, or - to type token ids until Ctrl-D")
        text = read_text(prompt or STANDARD_INPUT)
        if hash_block_size:
            return hash_prefix(block_hashes(text), hash_block_size, cache_salt=salt, adapter=adapter)
        return token_prefix(token_ids(text), cache_salt=salt, adapter=adapter)


def explained_prefix(
    depot: DepotClient, prefix: cache_pb2.Prefix, instance: str, model: str, tenant: str = ""
) -> tuple[observability_pb2.ExplainPrefixResponse, cache_pb2.Prefix]:
    """Return what the depot has of a prompt, and the prompt as the engine stored it.

    vLLM's connector sends one hash for each chunk. Hashes of smaller blocks are tried in this form, too.

    Raises: DepotError.
    """
    answer = depot.explain_prefix(prefix, instance_id=instance, model_name=model, tenant=tenant)
    whole = _in_whole_chunks(prefix, answer.chunk_size)
    if answer.incomparable_chunks and whole is not None:
        by_chunks = depot.explain_prefix(whole, instance_id=instance, model_name=model, tenant=tenant)
        if by_chunks.matched_tokens >= answer.matched_tokens:
            return by_chunks, whole
    return answer, prefix


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
