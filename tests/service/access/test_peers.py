"""Peers: which addresses count as one, and the share that one leaves to others."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from service.access.peers import PeerLimit, peer_of
from service.errors import TooManyRpcs
from service.rpc.inflight_bytes import InflightBytes


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("ipv4:10.0.0.1:50051", "10.0.0.1"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50051", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50051", "2001:db8:1:2::"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:7", "2001:db8:1:2::"),
        ("ipv6:%5Bfe80::1%25eth0%5D:7", "fe80::"),
        ("unix:", "unix"),
        ("unix:/run/kvdepot.sock", "unix"),
    ],
)
def test_a_peer_is_a_host_or_a_site(address: str, peer: str) -> None:
    assert peer_of(address) == peer


def test_a_peer_has_as_many_calls_as_it_may_and_gives_them_back() -> None:
    limit = PeerLimit(2, 100)
    with (
        limit.open_call("a"),
        limit.open_call("a"),
        limit.open_call("b"),
        pytest.raises(TooManyRpcs),
        limit.open_call("a"),
    ):
        pass
    with limit.open_call("a"), limit.open_call("a"):
        pass


def test_when_all_calls_are_open_peers_beyond_their_share_are_refused() -> None:
    limit = PeerLimit(10, 4)
    with ExitStack() as calls:
        for peer in "aaab":
            calls.enter_context(limit.open_call(peer))
        with pytest.raises(TooManyRpcs), limit.open_call("a"):
            pass
        for peer in "bc":
            calls.enter_context(limit.open_call(peer))
        with pytest.raises(TooManyRpcs), limit.open_call("b"):
            pass


# Bytes of requests


async def test_one_client_gets_at_most_half_of_the_limit() -> None:
    inflight = InflightBytes(4, 100)
    with ExitStack() as calls:
        reservations = [calls.enter_context(inflight.reservation(client)) for client in "aaab"]
        reserving = [asyncio.create_task(each.reserve()) for each in reservations]
        await asyncio.sleep(0)
        assert [task.done() for task in reserving] == [True, True, False, True]
        reservations[3].shrink(10)
        reservations[0].shrink(50)
        await asyncio.sleep(0)
        assert not reserving[2].done(), "it would have more than half"
        reservations[1].shrink(50)
        await asyncio.wait([reserving[2]], timeout=5)
        assert inflight.reserved_bytes == 10 + 50 + 50 + 100
    assert inflight.reserved_bytes == 0
    assert inflight.fits("a", 200)


async def test_clients_that_wait_are_admitted_round_robin() -> None:
    inflight = InflightBytes(2, 100)
    began: list[str] = []

    async def call(client: str) -> None:
        with inflight.reservation(client) as reservation:
            await reservation.reserve()
            began.append(client)
            await asyncio.sleep(0)

    await asyncio.gather(*(call(client) for client in "aaaaaab"))
    assert began.index("b") < 3
    assert inflight.reserved_bytes == 0


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_call_that_is_cancelled_while_it_waits_reserves_nothing(moment: str) -> None:
    inflight = InflightBytes(2, 100)
    with ExitStack() as calls:
        first = calls.enter_context(inflight.reservation("a"))
        await first.reserve()
        waiting = asyncio.create_task(inflight.reservation("a").reserve())
        await asyncio.sleep(0)
        if moment == "after":
            first.shrink(0)  # frees bytes for it
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert inflight.reserved_bytes == (0 if moment == "after" else 100)
        first.shrink(0)
        with inflight.reservation("a") as next_one:
            await asyncio.wait_for(next_one.reserve(), timeout=5)
    assert inflight.reserved_bytes == 0
