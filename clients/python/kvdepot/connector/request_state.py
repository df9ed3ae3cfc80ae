"""One request: its view in the engine, and its state in the connector's scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvdepot.connector.lookups import PendingLookup


class EngineRequest(Protocol):
    """A request in its engine. Its tokens grow as the engine samples them. `block_hashes` has one per whole block."""

    @property
    def request_id(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def all_token_ids(self) -> Sequence[int]: ...
    @property
    def block_hashes(self) -> Sequence[bytes]: ...


class Adapter(Protocol):
    """The adapter (LoRA) that one request is computed with."""

    @property
    def identity(self) -> str | None:
        """The identity of its weights when the request arrived. None: the connector can't find out."""

    def is_current(self) -> bool:
        """Return whether the engine still computes with these weights."""

    def was_replaced(self) -> bool:
        """Return whether the engine's own prefix cache may hold KV of other weights under this adapter's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTraits:
    """The properties of a request that never change.

    `has_only_tokens`: its KV comes from its tokens alone, without images. `will_continue`: its prompt is likely to come
    again soon with more tokens. None: the request does not say. At most `max_load_tokens` are loaded for it, and no
    chunk is stored that ends behind `max_store_tokens`. None: no limit. The engine's hashes name the KV of the first
    `named_tokens` only, and no chunk that ends behind them is loaded or stored. None: they name all of it.
    """

    cache_salt: str = ""
    traceparent: str = ""
    adapter: Adapter | None = None
    may_load: bool = True
    has_token_ids: bool = True
    has_only_tokens: bool = True
    will_continue: bool | None = None
    max_load_tokens: int | None = None
    max_store_tokens: int | None = None
    named_tokens: int | None = None


@dataclass(slots=True, eq=False)
class RequestState:
    """One request, from its arrival until the engine has finished it and its last transfer is done.

    `stored_tokens` are those that the depot has, or will have if the running stores succeed. `waited_seconds` is
    the time spent on lookups since the engine last allocated blocks for the request, without the wait that began at
    `waits_since` (monotonic). `local_tokens` are in the engine's own prefix cache. `l2_tokens` of its last load come
    from tiers behind L1. `lookup_mark` is described at `PublishedBlocks.mark`. The last step that ended with a chunk
    has computed `exact_tokens`: the engine has the states after exactly these.
    """

    request: EngineRequest
    session_id: str
    traits: RequestTraits
    may_load: bool
    lookup: PendingLookup | None = None
    waits_since: float | None = None
    waited_seconds: float = 0.0
    local_tokens: int = 0
    stored_tokens: int = 0
    reported_tokens: int = 0
    l2_tokens: int = 0
    lookup_mark: int = 0
    exact_tokens: int = 0
    may_store: bool = True
    is_reported: bool = False
    known_to_depot: bool = False
    finished: bool = False
    transfer_ids: set[int] = field(default_factory=set)

    @property
    def request_id(self) -> str:
        """The engine's id of the request."""
        return self.request.request_id

    @property
    def adapter_identity(self) -> str:
        """The identity of its adapter; empty without one."""
        return (self.traits.adapter.identity or "") if self.traits.adapter is not None else ""

    def end_wait(self, now: float) -> None:
        """Add the wait that has not ended, if there is one; `now` is monotonic."""
        if self.waits_since is not None:
            self.waited_seconds += now - self.waits_since
            self.waits_since = None

    def end_generation(self) -> None:
        """Take a change of the weights. Neither load nor store any more if KV of the older weights is in its blocks."""
        self.stored_tokens = 0
        if self.request.num_computed_tokens or self.transfer_ids:
            self.may_load = self.may_store = False

    def check_adapter(self) -> None:
        """Neither load nor store KV of an adapter that is unknown, or that was replaced since the request arrived.

        The engine's own prefix cache may hold KV of the replaced weights, so that nothing that builds on it is stored.
        """
        adapter = self.traits.adapter
        if adapter is not None and (not adapter.is_current() or (self.local_tokens and adapter.was_replaced())):
            self.may_load = self.may_store = False
