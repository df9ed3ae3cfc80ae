"""Changes of the file of tenants: new tenants, removed tenants, and what removed tenants leave."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvdepot import KvShape, token_prefix
from kvdepot.errors import depot_error
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from service.access.reload import ReloadedFiles, read_file
from tests.e2e.access.calling import Calling, Denied, sha256, write_tenants
from tests.e2e.access.conftest import BLUE, OPS, RED, Connect, StartTenants
from tests.e2e.conftest import Open
from tests.e2e.engines import prompt
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=1, num_blocks=16, block_size=4, num_heads=1, head_size=4, dtype="uint8")
CHUNK_BYTES = 2 * 16 * 4


async def is_let_in(call: Calling) -> bool:
    try:
        await call("ListSessions", observability_pb2.ListSessionsRequest())
    except Denied as denied:
        assert denied.code == "UNAUTHENTICATED"
        return False
    return True


async def attached(call: Calling, byte: bytes = b"\0") -> Any:
    """Return the stream of an attachment that stores a prompt and leases it. All bytes of its KV are `byte`."""
    instance_id = "i"
    stream = call.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(
            instance_id=instance_id, model_name="m", world_size=1, groups=[layouts.VLLM.without_memory(SHAPE)]
        ),
    )
    await stream.read()
    prefix = cache_pb2.Prefix(token_ids=range(16))
    header = cache_pb2.StoreInlineHeader(instance_id=instance_id, session_id="s", prefix=prefix)
    await call(
        "StoreInline",
        [cache_pb2.StoreInlineRequest(header=header), cache_pb2.StoreInlineRequest(data=byte * CHUNK_BYTES)],
    )
    await call("Lookup", cache_pb2.LookupRequest(instance_id=instance_id, session_id="s", prefix=prefix))
    return stream


async def ended_with(stream: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await stream.read() is not grpc.aio.EOF:
            pass
        await stream
    return depot_error(caught.value).reason


async def test_tenants_come_and_go_without_a_restart(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(RED, OPS)
    red, blue = (connect(server.addresses[0], token) for token in ("red-token", "blue-token"))
    assert (await is_let_in(red), await is_let_in(blue)) == (True, False)
    write_tenants(tmp_path / "tenants.yaml", BLUE, OPS)
    await eventually(lambda: is_let_in(blue))
    assert not await is_let_in(red)


async def test_a_new_token_is_valid_before_the_old_one_is_removed(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(RED)
    old, new = (connect(server.addresses[0], token) for token in ("red-token", "new-token"))
    write_tenants(tmp_path / "tenants.yaml", {"name": "red", "tokens": [sha256("red-token"), sha256("new-token")]})
    await eventually(lambda: is_let_in(new))
    assert await is_let_in(old)
    write_tenants(tmp_path / "tenants.yaml", {"name": "red", "tokens": [sha256("new-token")]})

    async def is_gone() -> bool:
        return not await is_let_in(old)

    await eventually(is_gone)
    assert await is_let_in(new)


async def test_of_a_tenant_that_is_taken_out_nothing_is_left(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(RED, BLUE, OPS)
    red, blue, ops = (connect(server.addresses[0], f"{name}-token") for name in ("red", "blue", "ops"))
    streams = [await attached(red, b"r"), await attached(blue, b"b")]
    watching = red.start("WatchEvents", observability_pb2.WatchEventsRequest())
    await watching.initial_metadata()
    write_tenants(tmp_path / "tenants.yaml", BLUE, OPS)
    assert await ended_with(streams[0]) == "CREDENTIALS_REVOKED"
    assert await ended_with(watching) == "CREDENTIALS_REVOKED"

    async def status() -> Any:
        (answer,) = await ops("GetStatus", admin_pb2.GetStatusRequest())
        return {each.name: each for each in answer.tenants}

    async def has_nothing() -> bool:
        gone = (await status())["red"]
        return not (gone.num_instances or gone.num_sessions or gone.num_leases or gone.num_chunks)

    await eventually(has_nothing)
    l1 = server.memory.view
    await eventually(lambda: b"r" not in bytes(l1))
    assert bytes(l1).count(b"b") == CHUNK_BYTES
    stays = (await status())["blue"]
    assert (stays.num_instances, stays.num_sessions, stays.num_leases, stays.num_chunks) == (1, 1, 1, 1)
    assert not streams[1].done()
    streams[1].cancel()

    # The next tenant of that name finds nothing.
    write_tenants(tmp_path / "tenants.yaml", {"name": "red", "token": "another"}, OPS)
    heir = connect(server.addresses[0], "another")
    await eventually(lambda: is_let_in(heir))
    stream = heir.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(
            instance_id="i", model_name="m", world_size=1, groups=[layouts.VLLM.without_memory(SHAPE)]
        ),
    )
    await stream.read()
    prefix = cache_pb2.Prefix(token_ids=range(16))
    (found,) = await heir("Lookup", cache_pb2.LookupRequest(instance_id="i", session_id="s", prefix=prefix))
    assert found.matched_tokens == 0
    stream.cancel()


async def test_a_store_that_runs_on_after_its_tenant_was_removed_leaves_nothing(open_site: Open) -> None:
    site = await open_site()
    engine = await site.attach()
    site.depot.is_removed = True  # as if the tenant was removed after the depot had let this call in
    prefix = token_prefix(prompt(32, 1))
    await engine.store("s", prefix, engine.kv(32, 1))
    assert (await engine.lookup("t", prefix)).matched_tokens == 0
    index = site.server.memory.index
    await eventually(lambda: index.pool.used_bytes == 0)
    assert not any(site.server.memory.view)


async def test_a_stream_ends_when_its_token_expires(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(BLUE)
    call = connect(server.addresses[0], "short")
    assert not await is_let_in(call)
    soon = datetime.now(UTC) + timedelta(seconds=2)
    tokens = [{"sha256": sha256("short"), "expire_time": soon.isoformat()}]
    write_tenants(tmp_path / "tenants.yaml", {"name": "red", "tokens": tokens})
    await eventually(lambda: is_let_in(call))
    stream = call.start("WatchEvents", observability_pb2.WatchEventsRequest())
    assert await ended_with(stream) == "CREDENTIALS_REVOKED"
    assert datetime.now(UTC) >= soon


async def test_an_admin_that_loses_the_role_stops_watching_others(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(RED, OPS)
    stream = connect(server.addresses[0], "ops-token").start("WatchEvents", observability_pb2.WatchEventsRequest())
    await stream.initial_metadata()
    write_tenants(tmp_path / "tenants.yaml", RED, OPS | {"admin": False})
    assert await ended_with(stream) == "CREDENTIALS_REVOKED"


async def test_a_broken_file_is_reported_and_the_old_tenants_go_on(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_tenants(RED, OPS)
    red, ops = (connect(server.addresses[0], token) for token in ("red-token", "ops-token"))
    stream = await attached(red)
    watching = ops.start(
        "WatchEvents", observability_pb2.WatchEventsRequest(event_types=["FileRefused", "FileReloaded"])
    )
    await watching.initial_metadata()
    path = tmp_path / "tenants.yaml"
    tenants = server._access.tenants
    for number, text in enumerate(("tenants: []", "{", ""), start=1):
        path.write_text(text)
        await eventually(lambda number=number: tenants.num_refusals == number)  # type: ignore[misc]
        assert tenants.is_broken
        event = (await watching.read()).event
        assert (event.type, event.attributes["file"]) == ("FileRefused", "tenants")
        assert await is_let_in(red)
    assert sum(each.levelno == logging.ERROR for each in caplog.records) == 3
    write_tenants(path, RED, BLUE, OPS)
    assert (await watching.read()).event.type == "FileReloaded"
    assert not tenants.is_broken
    assert await is_let_in(connect(server.addresses[0], "blue-token"))
    assert not stream.done()
    stream.cancel()
    watching.cancel()


async def test_limits_change_with_the_file(start_tenants: StartTenants, connect: Connect, tmp_path: Path) -> None:
    server = await start_tenants(RED, tenant_max_attachments=1)
    red = connect(server.addresses[0], "red-token")
    first = red.start("WatchEvents", observability_pb2.WatchEventsRequest())
    await first.initial_metadata()

    async def takes_another() -> bool:
        try:
            await red("WatchEvents", observability_pb2.WatchEventsRequest())
        except Denied as denied:
            assert denied.reason == "TOO_MANY_RPCS"
            return False
        return True

    assert not await takes_another()
    write_tenants(tmp_path / "tenants.yaml", RED | {"limits": {"max_attachments": 2}})
    await eventually(takes_another)
    assert not first.done()
    first.cancel()


# Whatever is in a file


async def test_an_unexpected_error_does_not_end_the_watch(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")

    def read() -> int:
        return 6 // int(path.read_text())

    seen: list[int] = []
    watched = ReloadedFiles("number", [path], read, ValueError, None)
    watching = asyncio.create_task(watched.watch(seen.append))
    for text, is_broken in (("0", True), ("x", True), ("2", False)):
        path.write_text(text)
        await eventually(lambda is_broken=is_broken, text=text: watched.is_broken == is_broken)  # type: ignore[misc]
        await asyncio.sleep(0.2)
    assert (watched.value, seen, watched.num_refusals) == (3, [3], 2)
    watching.cancel()


async def test_a_read_that_hangs_is_reported_and_delays_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a file system of a network that does not answer."""
    monkeypatch.setattr("service.access.reload.HANG_SECONDS", 0.05)
    path, answers, threads = tmp_path / "file", threading.Event(), set(threading.enumerate())
    path.write_text("1")

    def read() -> str:
        if path.read_text() != "1":
            answers.wait()
        return path.read_text()

    watched = ReloadedFiles("text", [path], read, ValueError, None)
    watching = asyncio.create_task(watched.watch(lambda _: None))
    path.write_text("2")
    await eventually(lambda: watched.is_broken)
    assert (watched.value, watched.num_refusals) == ("1", 1)
    assert "text: the file can't be read" in caplog.text
    assert all(thread.daemon for thread in set(threading.enumerate()) - threads)  # Python does not wait for it at exit
    answers.set()
    await eventually(lambda: watched.value == "2")
    assert not watched.is_broken

    answers.clear()
    path.write_text("3")
    await eventually(lambda: watched.is_broken)
    watching.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([watching])
    answers.set()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_ordinary_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "it")
    with pytest.raises(OSError, match=r"ordinary file|directory"):
        read_file(tmp_path / "it")


def test_of_a_file_without_end_little_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="is larger than 16777216 bytes"):
        read_file(tmp_path / "large")


async def test_what_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("whole")
    seen: list[str] = []
    watched = ReloadedFiles("text", [path], path.read_text, ValueError, None)
    watching = asyncio.create_task(watched.watch(seen.append))
    for number in range(40):
        path.write_text(f"half {number}")
        await asyncio.sleep(0.01)
    path.write_text("whole again")
    await eventually(lambda: watched.value == "whole again")
    assert len(seen) < 4
    watching.cancel()
