"""The command `selftest`: whether a depot returns what was stored, tried as an inline engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from enum import IntEnum
from typing import Annotated
from uuid import uuid4

import typer

from kvdepot import Attachment, Credentials, DepotClient, DepotError, KvShape, token_prefix
from kvdepot.cli.address import BadAddress, read_address
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, takes_credentials
from kvdepot.cli.failures import why
from kvdepot.cli.terminal import fail
from kvdepot.layout import layouts

MODEL_NAME = "kvdepot-selftest"
NUM_CHUNKS = 2
TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 1.0

# Blocks of one token fit whatever chunks the depot has; 64 bytes a token are little to store.
SHAPE = KvShape(num_layers=1, num_blocks=1, block_size=1, num_heads=1, head_size=16, dtype="float16")


class ExitCode(IntEnum):
    """The exit codes of the command, for scripts."""

    WORKS = 0
    REFUSED = 1
    """The depot could not be reached, refused a call, or is full."""
    BAD_USAGE = 2
    """The flags contradict each other, or name a file that can't be read."""
    WRONG = 3
    """An answer was wrong."""


class NotStored(Exception):
    """The depot is full; the message says why."""


class WrongAnswer(Exception):
    """The depot returned something else than was stored; the message says what."""


@takes_credentials
def selftest(
    *,
    address: Address = DEFAULT_ADDRESS,
    wait_seconds: Annotated[float, typer.Option(min=0, help="How long to wait for a depot that is starting.")] = 0.0,
    credentials: Credentials,
) -> None:
    """Store two chunks, find them, retrieve them, and compare the bytes.

    Exits with 0 if the depot works, with 1 if it can't be reached or refuses, with 3 if what it gives back is wrong.
    """
    try:
        read_address(address)
        with (
            DepotClient(address, credentials=credentials, timeout_seconds=TIMEOUT_SECONDS) as client,
            closing(_attach(client, wait_seconds)) as attachment,
        ):
            _try(attachment, print)
    except (DepotError, NotStored, BadAddress) as error:
        fail(f"{address}: {why(error, address, credentials)}", ExitCode.REFUSED)
    except (ValueError, OSError) as error:
        fail(str(error), ExitCode.BAD_USAGE)
    except WrongAnswer as error:
        fail(f"{address}: {error}", ExitCode.WRONG)
    print(f"{address} works")


def _attach(client: DepotClient, wait_seconds: float) -> Attachment:
    """Attach without memory. While no depot answers, try again until the time is over.

    Raises: DepotError.
    """
    group = layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(SHAPE)
    give_up_at = time.monotonic() + wait_seconds
    while True:
        try:
            return client.attach(instance_id=f"selftest-{uuid4()}", model_name=MODEL_NAME, groups=[group])
        except DepotError as error:
            if error.reason not in ("UNREACHABLE", "DRAINING") or time.monotonic() + RETRY_SECONDS > give_up_at:
                raise
        time.sleep(RETRY_SECONDS)


def _try(attachment: Attachment, say: Callable[[str], None]) -> None:
    """Store, look up, retrieve and compare.

    Raises: DepotError, NotStored, WrongAnswer.
    """
    num_tokens = NUM_CHUNKS * attachment.chunk_size
    say(f"attached to kvdepot {attachment.server_version}: chunks of {attachment.chunk_size:,} tokens")
    salt = uuid4().hex  # no other store used it: a match is what is stored here
    prefix = token_prefix(range(num_tokens), cache_salt=salt)
    data = os.urandom(NUM_CHUNKS * attachment.chunk_bytes)
    _expect("found before it was stored", attachment.lookup("before", prefix).matched_tokens, 0)

    stored = attachment.store_inline("store", prefix, data)
    if stored.refused_tokens:
        raise NotStored(f"{stored.refused_tokens:,} tokens were refused: {stored.refusal.detail}")
    _expect("stored", stored.stored_tokens, num_tokens)
    say(f"stored {num_tokens:,} tokens, {len(data):,} bytes")

    found = attachment.lookup("retrieve", prefix)
    _expect("found", found.matched_tokens, num_tokens)
    retrieved = bytearray(len(data))
    attachment.retrieve_inline_into("retrieve", found.lease, retrieved)
    if retrieved != data:
        raise WrongAnswer("the bytes that were retrieved are not those that were stored")
    say("retrieved the same bytes")

    other = attachment.lookup("other", token_prefix(range(num_tokens), cache_salt=f"{salt}-other"))
    _expect("found with another salt", other.matched_tokens, 0)
    summary = attachment.end_session("retrieve").summary
    say(f"ended the session: {len(summary.operations)} operations")


def _expect(what: str, num_tokens: int, expected: int) -> None:
    if num_tokens != expected:
        raise WrongAnswer(f"{num_tokens:,} tokens {what}, not {expected:,}")
