"""A tenant's activity is its own."""

from __future__ import annotations

from typing import Any

from kvdepot.v1 import observability_pb2
from tests.e2e.access.calling import Calling
from tests.e2e.access.conftest import Connect, StartTenants
from tests.fakes.waiting import eventually


async def test_a_tenant_sees_its_own_activity_alone(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants()
    red, blue, ops = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue", "ops"))
    for call, num_records in ((red, 3), (blue, 1)):
        for number in range(num_records):
            record = observability_pb2.BlockAllocationRecord(session_id=f"s{number}", block_ids=[1], token_ids=range(4))
            await call(
                "ReportBlockAllocation",
                observability_pb2.ReportBlockAllocationRequest(
                    instance_id="i", model_name="m", block_size=4, records=[record]
                ),
            )

    async def sessions(call: Calling, **fields: Any) -> tuple[int, int, int]:
        (answer,) = await call("GetActivity", observability_pb2.GetActivityRequest(**fields))
        last = answer.buckets[-1].gauges if answer.buckets else observability_pb2.ActivityGauges()
        return sum(each.num_sessions_started for each in answer.buckets), last.num_sessions, last.l1_capacity_bytes

    async def all_are_there() -> bool:
        return await sessions(ops) == (4, 4, 16 << 20)

    await eventually(all_are_there)
    assert await sessions(red) == (3, 3, 0)
    assert await sessions(blue) == (1, 1, 0)
    assert await sessions(ops, tenant="blue") == (1, 1, 0)
