"""What the scheduler's side knows of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvdepot.connector.lookups import Lookup


@dataclass(slots=True, eq=False)
class RequestState:
    """One request, from its arrival until vLLM has finished it and its last operation is settled.

    ``stored_tokens`` are those that the depot has, or will have when what is under way ends well. ``waited_seconds``
    were spent on answers since vLLM last made room for it; the wait that has not ended began at ``waits_since``.
    ``adapter`` is the identity of its LoRA adapter when it arrived; None if it can't be told from others.
    """

    request: Any
    session_id: str
    adapter: str | None = ""
    lookup: Lookup | None = None
    waits_since: float | None = None
    waited_seconds: float = 0.0
    local_tokens: int = 0
    stored_tokens: int = 0
    reported_tokens: int = 0
    may_load: bool = True
    may_store: bool = True
    is_reported: bool = False
    known_to_depot: bool = False
    finished: bool = False
    operations: set[int] = field(default_factory=set)

    @property
    def request_id(self) -> str:
        """vLLM's id of it."""
        return str(self.request.request_id)

    def end_wait(self, now: float) -> None:
        """Counts the time since vLLM was last told to ask again; ``now`` is monotonic."""
        if self.waits_since is not None:
            self.waited_seconds += now - self.waits_since
            self.waits_since = None
