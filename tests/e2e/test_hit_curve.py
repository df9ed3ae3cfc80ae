"""GetHitCurve of a real server: what it answers, for whom, and what hits are worth elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from kvdepot import AsyncDepotClient, DepotError, KvShape
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2
from service.l1.ghosts.curve import HitCurve
from service.server import Server
from telemetry.delivery import Subscriber
from telemetry.events import Event, LookupFinished
from tests.e2e.access.calling import Calling, Denied, write_tenants
from tests.e2e.conftest import Open
from tests.e2e.engines import prompt
from tests.e2e.scraping import measured, scrape, work
from tests.e2e.servers import running_server
from tests.fakes.curves import ASKED_TOKENS, FACTORS, GROWING, FakeCurves, curve

L1_BYTES = 16 << 20


class Remembering(Subscriber):
    """Keeps the lookups that finished."""

    name = "remembering"

    def __init__(self) -> None:
        self.lookups: list[LookupFinished] = []

    def handle(self, batch: Sequence[Event]) -> None:
        self.lookups += [event for event in batch if isinstance(event, LookupFinished)]


def simulate(server: Server, *curves: HitCurve) -> FakeCurves:
    """Let a server answer with these curves, as a depot whose L1 was full."""
    server.depots.index.num_evicted = 1
    source = server.sizing.source = FakeCurves(*curves)
    return source


async def test_a_depot_answers_with_its_curves_their_sum_and_advice(server: Server, client: AsyncDepotClient) -> None:
    simulate(
        server,
        curve(tenant="", model_name="llama", l1_bytes=L1_BYTES, share=0.6),
        curve(tenant="", model_name="qwen", l1_bytes=L1_BYTES, share=0.4),
    )
    answer = await client.get_hit_curve(window_seconds=3_600.0)
    assert answer.covered_window.seconds == 3_600
    assert answer.l1_capacity_bytes == L1_BYTES
    assert (answer.eviction, answer.active_policy, answer.curve_policy) == ("auto", "learned", "learned")
    assert answer.sampling_rate == 0.01
    assert [each.model_name for each in answer.curves] == ["llama", "qwen"]
    total = answer.total
    assert (total.asked_tokens, total.hit_tokens) == (ASKED_TOKENS, sum(each.hit_tokens for each in answer.curves))
    assert not total.is_too_early
    learned = [point for point in total.points if point.policy == "learned"]
    assert [point.l1_factor for point in learned] == list(FACTORS)
    assert [point.capacity_bytes for point in learned] == [round(factor * L1_BYTES) for factor in FACTORS]
    assert [point.hit_ratio for point in learned] == pytest.approx(GROWING)
    for point in learned:
        assert point.hit_ratio == pytest.approx(point.hit_tokens / ASKED_TOKENS)
        assert 0 < point.hit_ratio_error < 0.002
        assert point.saved_prefill_seconds == pytest.approx(point.hit_tokens / 10_000)
    (more,) = answer.advice
    assert more.kind == admin_pb2.SIZING_ADVICE_KIND_MORE_MEMORY
    assert more.capacity_bytes == 2 * L1_BYTES
    assert "40.0 % instead of 30.0 %" in more.text


async def test_one_model_is_asked_for_by_name(server: Server, client: AsyncDepotClient) -> None:
    simulate(server, curve(share=0.6, l1_bytes=L1_BYTES), curve(model_name="qwen", share=0.4, l1_bytes=L1_BYTES))
    answer = await client.get_hit_curve(model_name="qwen")
    assert [each.model_name for each in answer.curves] == ["qwen"]
    assert answer.total.asked_tokens == round(0.4 * ASKED_TOKENS)


async def test_too_early_has_no_points(server: Server, client: AsyncDepotClient) -> None:
    simulate(server, curve(share=0.0001, l1_bytes=L1_BYTES))
    answer = await client.get_hit_curve()
    assert answer.total.is_too_early
    assert not answer.total.points
    assert not answer.curves[0].points
    assert answer.num_needed_uses > answer.total.num_sampled_uses
    assert [each.kind for each in answer.advice] == [admin_pb2.SIZING_ADVICE_KIND_TOO_EARLY]


async def test_a_busy_model_has_a_curve_while_it_is_too_early_for_another(
    server: Server, client: AsyncDepotClient
) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES), curve(model_name="rare", share=1e-5, l1_bytes=L1_BYTES))
    busy, rare = (await client.get_hit_curve()).curves
    assert (busy.is_too_early, rare.is_too_early) == (False, True)


async def test_an_estimate_beyond_what_is_possible_is_shown_as_the_bound(
    server: Server, client: AsyncDepotClient
) -> None:
    simulate(server, curve([-0.01, 0.5, 0.9, 1.02, 1.02, 1.02], l1_bytes=L1_BYTES))
    ratios = [point.hit_ratio for point in (await client.get_hit_curve()).total.points if point.policy == "learned"]
    assert (ratios[0], ratios[-1]) == (0.0, 1.0)


async def test_the_window_reaches_the_simulations_in_seconds(server: Server, client: AsyncDepotClient) -> None:
    source = simulate(server)
    await client.get_hit_curve(window_seconds=90.5)
    await client.get_hit_curve()
    assert source.windows == [90.5, float("inf")]


@pytest.mark.parametrize("window_seconds", [0.0, -1.0, 31 * 86_400.0])
async def test_a_window_that_can_not_be_is_refused(client: AsyncDepotClient, window_seconds: float) -> None:
    with pytest.raises(DepotError, match="window") as refused:
        await client.get_hit_curve(window_seconds=window_seconds)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_with_tenants_it_is_for_admins_who_see_all_or_one(tmp_path: Path) -> None:
    tenants = write_tenants(
        tmp_path / "tenants.json",
        *({"name": name, "token": name, "admin": name == "ops"} for name in ("red", "blue", "ops")),
    )
    async with running_server({"tenants": tenants}) as server:
        simulate(server, *(curve(tenant=name, l1_bytes=L1_BYTES, share=0.5) for name in ("red", "blue")))
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            with pytest.raises(Denied) as denied:
                await Calling(channel, "red")("GetHitCurve", admin_pb2.GetHitCurveRequest(tenant="red"))
            assert (denied.value.code, denied.value.reason) == ("PERMISSION_DENIED", "ADMIN_ONLY")
            ops = Calling(channel, "ops")
            (everything,) = await ops("GetHitCurve", admin_pb2.GetHitCurveRequest())
            (of_red,) = await ops("GetHitCurve", admin_pb2.GetHitCurveRequest(tenant="red"))
    assert sorted(each.tenant for each in everything.curves) == ["blue", "red"]
    assert [each.tenant for each in of_red.curves] == ["red"]
    assert of_red.total.asked_tokens == ASKED_TOKENS // 2


# What hits are worth


async def test_hits_are_reported_in_tokens_in_bytes_and_in_time(open_site: Open) -> None:
    depot = await open_site(**measured())
    seen = Remembering()
    assert depot.server.bus is not None
    depot.server.bus.subscribe(seen)
    engine = await depot.attach(model_name="llama", prefill_tokens_per_second=1_000.0)
    await work(engine, "s", 40, seed=1)
    await engine.lookup("s", prompt(40, seed=1), computed_tokens=16)
    chunk_bytes = engine.attachment.chunk_bytes
    page = await scrape(depot.server)
    assert page.value("kvdepot_lookup_matched_bytes_total", model_name="llama") == 4 * chunk_bytes
    hits = (await depot.client.get_status()).hits
    assert (hits.num_lookups, hits.asked_tokens, hits.hit_tokens, hits.l2_tokens) == (2, 80, 64, 0)
    assert hits.hit_bytes == 4 * chunk_bytes
    assert hits.saved_prefill_seconds == pytest.approx(0.032 + 0.016), "the engine had 16 tokens itself"
    first, second = seen.lookups
    assert (first.matched_bytes, second.matched_bytes) == (2 * chunk_bytes, 2 * chunk_bytes)
    assert (first.saved_prefill_seconds, second.saved_prefill_seconds) == pytest.approx((0.032, 0.016))


async def test_no_time_is_reported_where_no_rate_is_known(open_site: Open) -> None:
    depot = await open_site()
    engine = await depot.attach()
    await work(engine, "s", 40, seed=1)
    hits = (await depot.client.get_status()).hits
    assert hits.hit_tokens == 32
    assert not hits.HasField("saved_prefill_seconds")
    await depot.client.lookup(engine.attachment.instance_id, "s", prompt(40, 1), prefill_tokens_per_second=100.0)
    assert (await depot.client.get_status()).hits.saved_prefill_seconds == pytest.approx(0.32)


# With real simulations

CHUNK_SIZE, CHUNKS_OF_PROMPT, NUM_PROMPTS, NUM_ROUNDS = 256, 16, 64, 9
GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)


async def test_a_depot_with_half_the_memory_that_a_loop_needs_says_so() -> None:
    """With LRU a loop hits nothing until all of it fits."""
    slot_bytes = CHUNK_SIZE * 16
    l1_bytes = CHUNKS_OF_PROMPT * NUM_PROMPTS * slot_bytes // 2
    flags = {"l1_size": str(l1_bytes), "chunk_size": CHUNK_SIZE, "eviction": "lru", "disable_logging": True}
    async with (
        running_server(flags) as server,
        AsyncDepotClient(server.addresses[0]) as client,
        await client.attach(
            instance_id="e", model_name="llama", groups=[GROUP], prefill_tokens_per_second=10_000.0
        ) as attachment,
    ):
        data = bytes(CHUNKS_OF_PROMPT * attachment.chunk_bytes)
        for number in range(NUM_ROUNDS * NUM_PROMPTS):
            tokens = [number % NUM_PROMPTS] * (CHUNK_SIZE * CHUNKS_OF_PROMPT)
            await client.lookup("e", f"s{number}", tokens)
            await attachment.store_inline(f"s{number}", tokens, data)
            await client.end_session("e", f"s{number}")
        answer = await client.get_hit_curve()
        hits = (await client.get_status()).hits
    total = answer.total
    assert total.asked_tokens == NUM_ROUNDS * NUM_PROMPTS * CHUNKS_OF_PROMPT * CHUNK_SIZE == hits.asked_tokens
    assert total.hit_tokens == hits.hit_tokens
    assert (answer.eviction, answer.active_policy, answer.curve_policy) == ("lru", "lru", "lru")
    assert not total.is_too_early
    ratios = {point.l1_factor: point for point in total.points if point.policy == "lru"}
    own = hits.hit_tokens / hits.asked_tokens
    possible = 1 - 1 / NUM_ROUNDS  # all but the first round
    for factor, exact in ((1.0, own), (4.0, possible)):
        point = ratios[factor]
        assert point.hit_ratio == pytest.approx(exact, abs=3 * point.hit_ratio_error + 0.01)
        assert point.hit_ratio_error < 0.12, "an eighth of 1,024 chunks is in the sample"
    assert own < 0.2
    for point in ratios.values():
        assert point.saved_prefill_seconds == pytest.approx(point.hit_tokens / 10_000)
    more = answer.advice[0]
    assert more.kind == admin_pb2.SIZING_ADVICE_KIND_MORE_MEMORY
    assert more.capacity_bytes in (2 * l1_bytes, 4 * l1_bytes)
    assert more.hit_ratio_gain == pytest.approx(possible - own, abs=3 * more.hit_ratio_gain_error)
