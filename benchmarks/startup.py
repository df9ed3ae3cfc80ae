"""From the start of the process to SERVING."""

from __future__ import annotations

import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import servers
from benchmarks.figures import Figure, Goal

ROUNDS = 5
SIZES = ("1GiB", "16GiB")


async def measure() -> list[Figure]:
    """Measure seconds for a small and a large L1, which is populated in the background."""
    seconds: dict[str, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            begin = time.perf_counter()
            with servers.depot("--l1-size", size) as depot:
                async with grpc.aio.insecure_channel(depot.unix) as channel:
                    health = health_pb2_grpc.HealthStub(channel)
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                seconds[size].append(time.perf_counter() - begin)
    return [
        Figure(what=f"start to SERVING, L1 of {size}", unit="s", values=values, goal=Goal(at_most=2.0))
        for size, values in seconds.items()
    ]
