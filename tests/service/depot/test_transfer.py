"""Errors of a transfer: each that the kernels can raise becomes one of the depot's, and may end the attachment."""

from __future__ import annotations

import pytest

import kernels.errors
from service.depot.instances import Attachment
from service.depot.operation import Operation
from service.depot.sessions import Session
from service.depot.transfer import TransferOwner
from service.errors import DepotError, Detached, RegionUnavailable, SessionNotFound, TransferFailed
from service.l1.keys import RankIdentity
from telemetry.kinds import OperationKind


@pytest.fixture
def owner() -> TransferOwner:
    attachment = Attachment(
        instance_id="i",
        model_name="m",
        world_size=1,
        rank=0,
        groups=(),
        identity=RankIdentity.of("m", 1, 0, (), 4),
        chunk_bytes=1,
        slot_bytes=1,
        buffer=None,
        transfer_backend="none",
    )
    session = Session(number=1, instance_id="i", session_id="s", model_name="m")
    return TransferOwner(
        attachment=attachment, session=session, operation=Operation(kind=OperationKind.STORE, operation_id="1")
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (kernels.errors.DeviceFailed("an illegal address"), TransferFailed),
        (kernels.errors.RegionError("gone"), RegionUnavailable),
        (kernels.errors.MemoryVanished(), RegionUnavailable),
    ],
)
def test_memory_or_a_device_that_fails_ends_the_attachment(
    owner: TransferOwner, error: Exception, expected: type[DepotError]
) -> None:
    with pytest.raises(expected, match=str(error)) as raised, owner.mapping_errors():
        raise error
    assert owner.attachment.failure is raised.value
    assert owner.attachment.failed.is_set()


@pytest.mark.parametrize(("detached", "expected"), [(True, Detached), (False, SessionNotFound)])
def test_a_transfer_that_was_cancelled_leaves_the_attachment_as_it_is(
    owner: TransferOwner, detached: bool, expected: type[DepotError]
) -> None:
    owner.attachment.detached = detached
    with pytest.raises(expected), owner.mapping_errors():
        raise kernels.errors.TransferCancelled("ended")
    assert owner.attachment.failure is None
    assert not owner.attachment.failed.is_set()
