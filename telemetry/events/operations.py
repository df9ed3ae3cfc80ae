"""Lookups, stores, retrieves and their transfers: a pair of events each, `…Started` and `…Finished`."""

from __future__ import annotations

from telemetry.events.event import Event, fact


@fact
class LookupStarted(Event):
    """A valid Lookup came in. The engine itself has the first `computed_tokens` tokens."""

    operation_id: str
    traceparent: str
    num_tokens: int
    computed_tokens: int


@fact
class LookupFinished(Event):
    """A Lookup is answered. `miss_reason` says why no more tokens matched. It is empty if all matched.

    `matched_bytes` are those of the matched chunks of all ranks. `saved_prefill_seconds` is the time that the engine
    needs to compute the matched tokens that it does not have, as it says how fast it computes. None: it does not say.
    """

    operation_id: str
    duration_seconds: float
    outcome: str
    num_tokens: int
    computed_tokens: int
    matched_tokens: int
    l1_tokens: int
    l2_tokens: int
    matched_bytes: int
    saved_prefill_seconds: float | None
    miss_reason: str


@fact
class StoreStarted(Event):
    """A valid Store came in, for the tokens from `start_token` on."""

    operation_id: str
    traceparent: str
    rank: int
    num_tokens: int
    start_token: int
    inline: bool


@fact
class StoreFinished(Event):
    """A Store is answered. Its four token counts add up to the tokens sent from `start_token` on."""

    operation_id: str
    rank: int
    duration_seconds: float
    outcome: str
    stored_tokens: int
    resident_tokens: int
    refused_tokens: int
    tail_tokens: int
    stored_bytes: int
    refusal_reason: str


@fact
class RetrieveStarted(Event):
    """A valid Retrieve came in. It does not write tokens below `skip_tokens`.

    `stored_by` has the `operation_id` of the stores that wrote the chunks, of a few at most.
    """

    operation_id: str
    traceparent: str
    rank: int
    lease_id: str
    num_tokens: int
    skip_tokens: int
    stored_by: tuple[str, ...]
    inline: bool


@fact
class RetrieveFinished(Event):
    """A Retrieve is answered. `l1_tokens` and `l2_tokens` say from which tier the retrieved tokens came."""

    operation_id: str
    rank: int
    duration_seconds: float
    outcome: str
    retrieved_tokens: int
    retrieved_bytes: int
    l1_tokens: int
    l2_tokens: int


@fact
class TransferStep:
    """One phase of a transfer, from its first start to its last end. Phases overlap where they can.

    `name`: wait (for the engine's event and for a free stream or thread), gather, scatter, copy. Times are from the
    transfer's start.
    """

    name: str
    start_seconds: float
    duration_seconds: float


@fact
class TransferStarted(Event):
    """Bytes of a store or a retrieve (`direction`) begin to move. `operation_id` is the transfer's own."""

    operation_id: str
    parent_operation_id: str
    direction: str
    rank: int
    num_chunks: int
    num_bytes: int
    backend: str


@fact
class TransferFinished(Event):
    """All bytes of the transfer have moved, or it stopped and none moves."""

    operation_id: str
    parent_operation_id: str
    direction: str
    rank: int
    duration_seconds: float
    outcome: str
    num_chunks: int
    num_bytes: int
    backend: str
    steps: tuple[TransferStep, ...]
