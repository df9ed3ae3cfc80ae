"""A failed call raises DepotError, with all details of the answer."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import pytest

from kvdepot import ChunkCorrupt, ChunkLost, DepotError, FieldViolation
from tests.clients.conftest import Side
from tests.fakes.depot import FakeDepot, bare_failure, failure

CODES = grpc.StatusCode


async def failed(side: Side, client: Any) -> DepotError:
    with pytest.raises(DepotError) as raised:
        await side(client.get_status, timeout_seconds=5)
    return raised.value


async def test_reason_fields_and_delay_are_read_from_the_details(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["GetStatus"] = failure(
        CODES.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "two fields are wrong",
        violations=(("groups[0].dtype", "is empty"), ("rank", "is not below world_size")),
        retry_after=(1, 250_000_000),
    )
    error = await failed(side, client)
    assert error.code is CODES.INVALID_ARGUMENT
    assert error.reason == "INVALID_REQUEST"
    assert error.message == "two fields are wrong"
    assert error.violations == (
        FieldViolation("groups[0].dtype", "is empty"),
        FieldViolation("rank", "is not below world_size"),
    )
    assert error.retry_after_seconds == 1.25
    for part in (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        "two fields",
        "groups[0].dtype: is empty",
        "rank: is not below",
    ):
        assert part in str(error)


async def test_fields_that_the_message_names_are_shown_once(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["GetStatus"] = failure(
        CODES.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "rank: is negative; session_id: is empty",
        violations=(("rank", "is negative"), ("session_id", "is empty")),
    )
    error = await failed(side, client)
    assert str(error) == "INVALID_ARGUMENT INVALID_REQUEST: rank: is negative; session_id: is empty"


async def test_unavailable_with_a_reason_is_not_called_unreachable(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["GetStatus"] = failure(CODES.UNAVAILABLE, "DRAINING")
    error = await failed(side, client)
    assert (error.code, error.reason, error.violations) == (CODES.UNAVAILABLE, "DRAINING", ())
    assert error.retry_after_seconds is None


async def test_answer_without_details_has_the_name_of_its_code_as_the_reason(
    side: Side, client: Any, depot: FakeDepot
) -> None:
    depot.failures["GetStatus"] = bare_failure(CODES.RESOURCE_EXHAUSTED, "too many")
    error = await failed(side, client)
    assert (error.code, error.reason, error.message) == (CODES.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", "too many")


async def test_details_that_are_no_status_do_not_hide_the_failure(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["GetStatus"] = bare_failure(CODES.NOT_FOUND, "no such thing", b"\xff\xff\xff")
    error = await failed(side, client)
    assert (error.code, error.reason, error.message) == (CODES.NOT_FOUND, "NOT_FOUND", "no such thing")


async def test_depot_that_is_not_there_is_unreachable(side: Side) -> None:
    client = side.client_class("127.0.0.1:1")
    error = await failed(side, client)
    assert (error.code, error.reason) == (CODES.UNAVAILABLE, "UNREACHABLE")
    await side(client.close)


async def test_failure_of_a_stream_is_a_depot_error(side: Side, client: Any, depot: FakeDepot) -> None:
    depot.failures["WatchEvents"] = failure(CODES.FAILED_PRECONDITION, "OBSERVABILITY_DISABLED")
    with pytest.raises(DepotError) as raised:
        await side.all(client.watch_events())
    assert raised.value.reason == "OBSERVABILITY_DISABLED"


@pytest.mark.parametrize(
    ("metadata", "first_bad_token", "bad_tokens"),
    [
        ({"first_bad_token": "32", "bad_tokens": "32:64,80:96"}, 32, (range(32, 64), range(80, 96))),
        ({}, 0, ()),
        ({"bad_tokens": "32"}, 0, ()),
        ({"bad_tokens": "32:64,x:y"}, 0, ()),
        ({"bad_tokens": "1:2:3"}, 0, ()),
    ],
)
async def test_damaged_chunks_have_an_error_with_their_tokens_and_in_doubt_none_is_right(
    metadata: dict[str, str],
    first_bad_token: int,
    bad_tokens: tuple[range, ...],
    side: Side,
    client: Any,
    depot: FakeDepot,
) -> None:
    depot.failures["GetStatus"] = failure(CODES.DATA_LOSS, "CHUNK_CORRUPT", "2 chunks", metadata=metadata)
    error = await failed(side, client)
    assert isinstance(error, ChunkCorrupt)
    assert (error.code, error.reason, error.message) == (CODES.DATA_LOSS, "CHUNK_CORRUPT", "2 chunks")
    assert (error.first_bad_token, error.bad_tokens) == (first_bad_token, bad_tokens)
    copied = pickle.loads(pickle.dumps(error))
    assert vars(copied) == vars(error) and type(copied) is ChunkCorrupt


@pytest.mark.parametrize(
    ("metadata", "first_bad_token"), [({"first_bad_token": "32"}, 32), ({}, 0), ({"first_bad_token": "-1"}, 0)]
)
async def test_lost_chunk_has_an_error_with_its_token_and_in_doubt_none_is_right(
    metadata: dict[str, str], first_bad_token: int, side: Side, client: Any, depot: FakeDepot
) -> None:
    depot.failures["GetStatus"] = failure(CODES.ABORTED, "CHUNK_LOST", "late", metadata=metadata)
    error = await failed(side, client)
    assert isinstance(error, ChunkLost)
    assert (error.code, error.reason, error.message) == (CODES.ABORTED, "CHUNK_LOST", "late")
    assert error.first_bad_token == first_bad_token
    copied = pickle.loads(pickle.dumps(error))
    assert vars(copied) == vars(error) and type(copied) is ChunkLost


def test_error_survives_pickling() -> None:
    error = DepotError(CODES.NOT_FOUND, "LEASE_EXPIRED", "late", (FieldViolation("lease_id", "has expired"),), 0.5)
    copied = pickle.loads(pickle.dumps(error))
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)
