"""Faults that are put into a depot on purpose, to see that the fuzzer notices each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.depot.depot import Depot
from service.depot.leases import Lease
from service.depot.lifetimes import Lifetimes
from service.errors import DepotError, InvalidRequest, invalid
from service.l1.chunk import Chunk
from service.l1.index import Index
from service.rpc import decode
from service.rpc.admin import AdminServicer
from service.rpc.observability import ObservabilityServicer

_EVERY = 10
_OF_FEW = 3


def _every(number: int, original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is the original, except for one in so many calls."""
    calls = 0

    def either(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (original if calls % number else instead)(*args, **kwargs)

    return either


def _a_pin_stays() -> None:
    unpin = Index.unpin

    def all_but_one(index: Index, chunks: Sequence[Chunk]) -> None:
        unpin(index, list(chunks)[1:])

    Index.unpin = _every(_EVERY, unpin, all_but_one)  # type: ignore[method-assign]


def _a_lease_is_forgotten_by_its_session() -> None:
    grant = Lifetimes.grant

    def granted(lifetimes: Lifetimes, session: Any, *args: Any) -> Lease:
        lease = grant(lifetimes, session, *args)
        session.lease_ids.clear()
        return lease

    Lifetimes.grant = _every(_EVERY, grant, granted)  # type: ignore[method-assign]


def _a_bug_in_a_servicer() -> None:
    def broken(request: Any) -> Any:
        raise KeyError(request.session_id)

    decode.lookup_request = _every(_EVERY, decode.lookup_request, broken)


def _the_loop_is_delayed() -> None:
    async def slow(servicer: Any, request: Any, context: Any) -> Any:
        time.sleep(5)  # noqa: ASYNC251 - that is the fault
        return await get_session(servicer, request, context)

    get_session = ObservabilityServicer.GetSession
    ObservabilityServicer.GetSession = _every(_OF_FEW, get_session, slow)  # type: ignore[method-assign]


def _a_reason_that_is_not_documented() -> None:
    class Weather(DepotError, status=InvalidRequest.status, reason="WEATHER"):
        pass

    async def clear(servicer: Any, request: Any, context: Any) -> Any:
        raise Weather("it rains")

    AdminServicer.ClearCache = _every(_OF_FEW, AdminServicer.ClearCache, clear)  # type: ignore[method-assign]


def _a_field_that_does_not_exist() -> None:
    def wrong(request: Any) -> Any:
        raise invalid("tokens", "is not the field's name")

    decode.store_request = _every(_EVERY, decode.store_request, wrong)


def _wrong_bytes() -> None:
    commit = Index.commit

    def committed(index: Index, chunk: Chunk) -> Any:
        _L1[0][chunk.slot.offset_bytes] ^= 1
        return commit(index, chunk)

    init = Depot.__init__

    def remembered(depot: Depot, l1: memoryview, *args: Any, **kwargs: Any) -> None:
        init(depot, l1, *args, **kwargs)
        _L1[:] = [l1]

    Depot.__init__ = remembered  # type: ignore[method-assign, assignment]
    Index.commit = _every(_OF_FEW, commit, committed)  # type: ignore[method-assign]


def _a_call_that_is_not_answered() -> None:
    async def listed(servicer: Any, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    list_instances = AdminServicer.ListInstances
    AdminServicer.ListInstances = _every(_OF_FEW, list_instances, listed)  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Fault:
    """A function that puts a fault into this process's depot, and words of the finding that reports it."""

    install: Callable[[], None]
    reported_as: str


_L1: list[memoryview] = []
KINDS: dict[str, Fault] = {
    "none": Fault(lambda: None, ""),
    "a pin stays": Fault(_a_pin_stays, " 0 leases and pins"),
    "a lease is forgotten by its session": Fault(_a_lease_is_forgotten_by_its_session, "is not its session's"),
    "a bug in a servicer": Fault(_a_bug_in_a_servicer, "INTERNAL INTERNAL"),
    "the loop is delayed": Fault(_the_loop_is_delayed, "the witness waited"),
    "a reason that is not documented": Fault(_a_reason_that_is_not_documented, "WEATHER"),
    "a field that does not exist": Fault(_a_field_that_does_not_exist, "fields that do not exist"),
    "wrong bytes": Fault(_wrong_bytes, "wrong bytes"),
    "a call that is not answered": Fault(_a_call_that_is_not_answered, "no answer in"),
}


def install(kind: str) -> None:
    """Break the depot of this process; "none" leaves it whole."""
    KINDS[kind].install()
