"""What a depot tells a recorder of its requests: what was looked up, what was stored, and which request is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.l1.keys import Namespace, Prefix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LookedUp:
    """A Lookup was answered, at a moment (monotonic seconds). `namespace` is that of the prompt's keys of one rank.

    `chunk_size` is that of its chunks, in tokens; a multiple of the tokens of a block hash.

    `request` is the number of the session's request. `request_before` is over, if it is another one; 0: there is none.
    """

    request: int
    request_before: int
    monotonic: float
    prefix: Prefix
    namespace: Namespace
    chunk_size: int
    tenant: str
    model_name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A Store of a request was answered, for one rank. `prefix` has all tokens from token 0 on."""

    request: int
    prefix: Prefix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestEnded:
    """The session of a request ended."""

    request: int


Seen = LookedUp | Stored | RequestEnded


class RequestRecorder(Protocol):
    """What records requests."""

    def note(self, seen: Seen) -> None:
        """Take it over. Never blocks, never raises. It changes nothing of what the cache does."""
