"""Depots that share a tier, each with a secret of its own or without one: none harms what another one wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from service.tiers.load import LoadEnd
from service.tiers.record import ChunkRecord, Owner, name_tag, tag_of
from tests.fakes.tiers import OWNER, TierUnderTest, expected, key_of, running_tier
from tests.fakes.waiting import eventually


async def load_of(test: TierUnderTest, number: int, owner: Owner = OWNER) -> LoadEnd:
    load = test.l1.load(number, owner=owner)
    test.tier.load([load])
    end = await load.done
    assert end is not LoadEnd.ARRIVED or test.l1.loaded(load) == expected(number)
    return end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tier"
    folder.mkdir()
    return folder


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path | None]:
    files: dict[str, Path | None] = {"none": None}
    for number, name in enumerate(("one", "other")):
        path = tmp_path / f"secret of {name}"
        path.write_bytes(bytes([number]) * 32)
        files[name] = path
    return files


@pytest.mark.parametrize(("writer", "reader"), [("one", "other"), ("one", "none"), ("none", "one")])
async def test_depots_with_other_secrets_find_nothing_and_leave_all_as_it_is(
    folder: Path, secrets: dict[str, Path | None], writer: str, reader: str
) -> None:
    async with running_tier(folder, secret_file=secrets[writer]) as first:
        await first.written([first.l1.chunk(2)])
        async with running_tier(folder, secret_file=secrets[reader], is_shared=True) as second:
            assert (await second.tier.find([key_of(2)], OWNER, 5.0)).found == [False]
            assert await load_of(second, 2) is LoadEnd.ABSENT
            assert LoadEnd.DAMAGED not in second.tier.snapshot().reads
            await second.written([second.l1.chunk(2)])
            assert second.folder.num_chunks() == 2, "each has a chunk of its own"
            assert await load_of(second, 2) is LoadEnd.ARRIVED
        assert await load_of(first, 2) is LoadEnd.ARRIVED


async def test_a_depot_with_the_same_secret_finds_chunks(folder: Path, secrets: dict[str, Path | None]) -> None:
    async with running_tier(folder, secret_file=secrets["one"]) as first:
        await first.written([first.l1.chunk(2)])
        async with running_tier(folder, secret_file=secrets["one"], is_shared=True) as second:
            assert (await second.tier.find([key_of(2)], OWNER, 5.0)).found == [True]
            assert await load_of(second, 2) is LoadEnd.ARRIVED


async def test_a_chunk_in_the_place_of_one_with_a_secret_is_damaged(
    folder: Path, secrets: dict[str, Path | None]
) -> None:
    async with running_tier(folder, secret_file=secrets["one"]) as test:
        await test.written([test.l1.chunk(2)])
        (path,) = test.folder.path.glob("chunk-*")
        value = path.read_bytes()
        record = ChunkRecord.unpack_any(value[:128])
        assert record is not None
        path.write_bytes(record.pack() + value[128:])
        assert await load_of(test, 2) is LoadEnd.DAMAGED
        await eventually(lambda: test.folder.num_chunks() == 0)


async def test_a_chunk_of_another_tenant_is_damaged(folder: Path, secrets: dict[str, Path | None]) -> None:
    async with running_tier(folder, secret_file=secrets["one"]) as test:
        await test.written([test.l1.chunk(2, owner=Owner("red", "m", ""))])
        assert await load_of(test, 2, Owner("blue", "m", "")) is LoadEnd.DAMAGED


def test_the_sum_of_a_record_has_a_key_of_the_tenant() -> None:
    secret, data = bytes(32), b"data"
    packed = ChunkRecord(bytes(32), len(data), 0, 0, tag_of(OWNER)).pack(secret=secret, data=data)
    body, own_sum = packed[:-16], packed[-16:]
    tenant_key = blake3(name_tag(OWNER.tenant), key=secret).digest()
    assert own_sum == blake3(body + data, key=tenant_key).digest(16)
