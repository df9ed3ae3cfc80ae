"""Invariants of a depot's state: at every moment, and when no call runs. They are checked in the depot's process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from service.depot.depot import Depot
from service.l1.chunk import Chunk
from service.server import Server

Faults = list[str]


def always(server: Server) -> Faults:
    """Return violations of the invariants that hold at every moment."""
    faults: Faults = []
    _try(faults, "index", server.depots.index.check)
    for depot in server.depots:
        _try(faults, "pins", depot.pins.check)
    held = _held(server)
    faults += [f"{chunk!r} is held {held[chunk]} times" for chunk in held if chunk.num_pins < held[chunk]]
    faults += _books(server, exactly=False)
    for depot in server.depots:
        quota = depot.quota
        if min(quota.num_running, quota.num_streams, quota.bytes_in_flight) < 0:
            faults.append(f"{quota!r} with {quota.num_streams} streams: more was given back than taken")
    if server.bus is not None and server.bus.stats().num_errors_by_subscriber:
        faults.append(f"subscribers raised: {server.bus.stats().num_errors_by_subscriber}")
    return faults


def soon(server: Server) -> Faults:
    """Return faults that may exist briefly, while the leases of an ended session end one by one."""
    return [fault for depot in server.depots for fault in (*_leases(depot), *_sessions(depot))]


def at_rest(server: Server) -> Faults:
    """Return what is in use although no call runs."""
    faults: Faults = []
    admission, index = server._admission, server.depots.index
    if admission.num_running:
        faults.append(f"{admission.num_running} calls run")
    for depot in server.depots:
        quota = depot.quota
        if quota.num_running or quota.bytes_in_flight:
            faults.append(f"{quota!r}")
        ranks = [rank for instance in depot.instances for rank in instance.ranks.values()]
        moving = [f"{rank.instance_id}/{rank.rank}" for rank in ranks if rank.transfers]
        if moving:
            faults.append(f"transfers of {moving}")
        working = [each for each in depot.sessions.newest_first() if each.num_running or each.transfers]
        faults += [f"session {each.session_id!r} of {each.instance_id!r} is at work" for each in working]
    held = _held(server)
    for chunk in index.chunks():
        if chunk.pending_write is not None or chunk.num_pins != held[chunk]:
            faults.append(f"{chunk!r}, {held[chunk]} leases and pins")
    faults += _books(server, exactly=True)
    return faults


def usage(server: Server) -> dict[str, int]:
    """Return numbers by name: of the depot's state and of the process."""
    depots = list(server.depots)
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "instances": sum(len(depot.instances) for depot in depots),
        "sessions": sum(len(depot.sessions) for depot in depots),
        "leases": sum(len(depot.leases) for depot in depots),
        "pins": sum(len(depot.pins) for depot in depots),
        "streams": server._admission.num_streams,
        "attached ranks": len(server._attacher._ended),
        "pinned chunks": server.depots.index.num_protected,
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "mapped regions": sum("/dev/shm/kvdepot-" in line or "/memfd:kvdepot (" in line for line in maps),
        "resident bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


def _try(faults: Faults, what: str, check: Callable[[], None]) -> None:
    try:
        check()
    except AssertionError as error:
        faults.append(f"{what}: {error or 'does not hold'}")


def _held(server: Server) -> Counter[Chunk]:
    """Return how many leases and pins each chunk is in."""
    return Counter(
        chunk
        for depot in server.depots
        for holder in (*depot.leases.live(), *depot.pins)
        for chunks in holder.chunks_by_rank
        for chunk in chunks
    )


def _books(server: Server, *, exactly: bool) -> Iterator[str]:
    """Check the sums of the pool and the index. Removed chunks that are still read are in these sums alone."""
    index = server.depots.index
    chunks = list(index.chunks())
    num_protected = sum(chunk.num_pins > 0 or chunk.pending_write is not None for chunk in chunks)
    used_bytes = sum(num_bytes for _, num_bytes in index.chunks_and_bytes_by_tenant().values())
    for what, booked, counted in (
        ("protected chunks", index.num_protected, num_protected),
        ("used bytes", index.pool.used_bytes, used_bytes),
    ):
        if booked < counted or (exactly and booked != counted):
            yield f"{booked} {what} are booked, {counted} are there"


def _leases(depot: Depot) -> Faults:
    faults: Faults = []
    for lease in depot.leases.live():
        session = depot.sessions.find(lease.instance_id, lease.session_id)
        name = f"lease {lease.lease_id} of {lease.instance_id!r}, {lease.session_id!r}"
        if session is None or lease.lease_id not in session.lease_ids:
            faults.append(f"{name} is not its session's")
        if all(instance.instance_id != lease.instance_id for instance in depot.instances):
            faults.append(f"{name} outlives its instance")
        if lease.end is not None:
            faults.append(f"{name} is live and has ended: {lease.end}")
    return faults


def _sessions(depot: Depot) -> Faults:
    faults: Faults = []
    live = {lease.lease_id for lease in depot.leases.live()}
    for session in depot.sessions.newest_first():
        name = f"session {session.session_id!r} of {session.instance_id!r}"
        if session.num_running < 0:
            faults.append(f"{name} has {session.num_running} operations running")
        if session.end is None and not session.lease_ids <= live:
            faults.append(f"{name} has leases that have ended")
    return faults
