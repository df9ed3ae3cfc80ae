"""What the console answers to each question. Here the depot's event loop meets the thread of HTTP.

Each method is called on the depot's event loop, is short or works in slices, and returns a function. The thread of HTTP
calls that function, which makes JSON's values: so the time that this takes is not the depot's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from kvdepot.quantiles import quantile
from kvdepot.version import __version__
from service.access.credentials import Caller
from service.console.feed import Feed
from service.depot.contents import AGE_BOUNDS_SECONDS, contents
from service.depot.tenant_depots import TenantDepots
from service.errors import ObservabilityDisabled, invalid
from service.rpc.admin import AdminServicer
from service.rpc.local import LocalCalls
from service.rpc.observability import ObservabilityServicer
from telemetry.activity.bucket import OPERATIONS, TOTALS, Bucket
from telemetry.activity.latency import BOUNDS_SECONDS
from telemetry.activity.series import Resolution
from telemetry.activity.subscriber import Activity
from telemetry.bus import EventBus

MAX_BUSIEST = 20
SESSIONS_ON_A_PAGE = 200
MAX_NAME = 1_024
Answer = Callable[[], Any]
Query = Mapping[str, str]


class Answers:
    """The questions that a page may ask, by name. `bus` and `activity` are None if they are turned off.

    Errors of each method are subclasses of `DepotError`.
    """

    def __init__(
        self,
        depots: TenantDepots,
        observability: ObservabilityServicer,
        admin: AdminServicer,
        bus: EventBus | None,
        activity: Activity | None,
    ) -> None:
        self._depots = depots
        self._calls = LocalCalls(observability, admin)
        self._activity = activity
        self._feed = Feed(bus) if bus is not None else None
        self.questions = {
            "who": self.who,
            "activity": self.activity,
            "status": self.status,
            "sessions": self.sessions,
            "session": self.session,
            "l1": self.l1,
            "sizing": self.sizing,
            "events": self.events,
        }

    async def who(self, caller: Caller, query: Query) -> Answer:
        """Return who the caller is, so that a page knows what it can show."""
        tenant = caller.tenant
        return lambda: {"version": __version__, "tenant": tenant.name, "is_admin": tenant.is_admin}

    async def activity(self, caller: Caller, query: Query) -> Answer:
        """Return the buckets that start after `after`, of the length `resolution`, and the busiest sessions."""
        tenant = self._tenant(caller, query)
        if self._activity is None:
            raise ObservabilityDisabled("the depot was started with --disable-activity or --disable-observability")
        resolution = _number(query, "resolution", 1)
        if resolution not in tuple(Resolution):
            raise invalid("resolution", f"{resolution:g} is not one of {', '.join(map(str, map(int, Resolution)))}")
        buckets = self._activity.read(tenant, Resolution(int(resolution)), _number(query, "after", 0))
        busiest = self._activity.busiest(tenant, MAX_BUSIEST)
        now = self._activity.now()
        return lambda: {
            "time": now,
            "bucket_seconds": int(resolution),
            "buckets": [_bucket(bucket) for bucket in buckets],
            "busiest": [
                {"tenant": key[0], "instance_id": key[1], "session_id": key[2], **asdict(activity)}
                for key, activity in busiest
            ],
        }

    async def status(self, caller: Caller, query: Query) -> Answer:
        """Return the state of the depot and its instances, for an admin."""
        return await self._calls.status(caller)

    async def sessions(self, caller: Caller, query: Query) -> Answer:
        """Return a page of sessions, the newest first, without their operations."""
        fields = {name: _text(query, name) for name in ("instance_id", "page_token", "tenant")}
        return await self._calls.sessions(caller, {**fields, "page_size": SESSIONS_ON_A_PAGE})

    async def session(self, caller: Caller, query: Query) -> Answer:
        """Return one session with its operations."""
        return await self._calls.session(
            caller, {name: _text(query, name) for name in ("instance_id", "session_id", "tenant")}
        )

    async def l1(self, caller: Caller, query: Query) -> Answer:
        """Return what L1 holds, by tenant, model, revision and salt, and by age."""
        tenant = self._tenant(caller, query)
        found = await contents(self._depots, tenant)
        pool = self._depots.index.pool
        sees_all = tenant == ""
        capacity_bytes, used_bytes = (pool.capacity_bytes, pool.used_bytes) if sees_all else (0, 0)
        return lambda: {
            "age_bounds_seconds": AGE_BOUNDS_SECONDS,
            "capacity_bytes": capacity_bytes,
            "used_bytes": used_bytes,
            "num_left_out": found.num_left_out,
            "left_out_bytes": found.left_out_bytes,
            "holdings": [{**asdict(holding), "ranks": len(holding.ranks)} for holding in found.holdings],
        }

    async def sizing(self, caller: Caller, query: Query) -> Answer:
        """Return what other sizes of L1 would have hit in the last `window` seconds, or as far back as is known."""
        window_seconds = _number(query, "window", 0) if query.get("window") else None
        return await self._calls.hit_curve(caller, window_seconds, _text(query, "tenant"))

    async def events(self, caller: Caller, query: Query) -> Answer:
        """Return the events with numbers above `after`. The first answer has none, and the number to go on from."""
        tenant = self._tenant(caller, query)
        if self._feed is None:
            raise ObservabilityDisabled("the depot was started with --disable-observability")
        read = self._feed.read(tenant, int(_number(query, "after", 0)))
        return lambda: read

    def _tenant(self, caller: Caller, query: Query) -> str:
        return self._calls.visible_tenant(caller, _text(query, "tenant"))


def _text(query: Query, name: str) -> str:
    value = query.get(name, "")
    if len(value) > MAX_NAME:
        raise invalid(name, f"is longer than {MAX_NAME} characters")
    return value


def _number(query: Query, name: str, default: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        raise invalid(name, "is not a number") from None
    if not -1e15 < value < 1e15:  # neither infinite nor NaN
        raise invalid(name, "is out of range")
    return value


def _bucket(bucket: Bucket) -> dict[str, Any]:
    """Return a bucket. Counts that are 0 are left out, because most are."""
    operations = {}
    for operation in OPERATIONS:
        first, counts = bucket.latencies(operation)
        if counts:
            operations[operation] = {
                "num_operations": sum(counts),
                "num_failed": bucket.num_failed(operation),
                "p50": quantile(0.5, first, counts, BOUNDS_SECONDS),
                "p99": quantile(0.99, first, counts, BOUNDS_SECONDS),
            }
    return {
        "start": bucket.start_time,
        "totals": {name: value for name in TOTALS if (value := bucket.count(name))},
        "missed": bucket.missed_tokens_by_reason,
        "refused": bucket.num_refused_stores_by_reason,
        "operations": operations,
        "gauges": asdict(bucket.gauges) if bucket.gauges is not None else None,
    }
