"""Who can reach the listeners, and warnings for listeners that are too open."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from service.rpc.listen import CannotListen, is_on_this_machine
from tests.e2e.access.calling import write_tenants
from tests.e2e.access.conftest import RED
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        *((local, True) for local in ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/run/a.sock")),
        *((remote, False) for remote in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "node:1", "[fe80::1]:1", "*:1")),
    ],
)
def test_which_listeners_other_machines_reach(address: str, is_local: bool) -> None:
    assert is_on_this_machine(address) == is_local


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "service.rpc.listen"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), ["NO AUTHENTICATION", "Set tenants and tls_cert, or tls_client_ca"]),
        (("tls",), ["NO AUTHENTICATION"]),
        (("tenants",), ["no tenant can call", "Set tls_cert"]),
        (("tenants", "plain"), ["others", "others on the network can read them"]),
        (("tenants", "tls"), []),
        (("tls", "client_ca"), []),
        (("tenants", "tls", "client_ca"), []),
    ],
)
async def test_a_listener_that_other_machines_reach_is_warned_of(
    given: tuple[str, ...],
    words: list[str],
    start_server: StartServer,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert, key = authority.issue().write(tmp_path, "depot")
    flags: dict[str, dict[str, Any]] = {
        "tls": {"tls_cert": cert, "tls_key": key},
        "client_ca": {"tls_client_ca": authority.write(tmp_path)},
        "tenants": {"tenants": write_tenants(tmp_path / "tenants.json", RED)},
        "plain": {"tokens_over_plain_tcp": True},
    }
    chosen = {name: value for each in given for name, value in flags[each].items()}
    await start_server(listen=("127.0.0.1:0", f"unix:{tmp_path}/a.sock"), **chosen)
    assert warnings(caplog) == []
    server = await start_server(listen=("0.0.0.0:0",), **chosen)
    if not words:
        assert warnings(caplog) == []
        return
    (line,) = warnings(caplog)
    assert any(word in line for word in words)
    assert server.addresses[0].partition(":")[0] in line
    assert [each.levelno for each in caplog.records if each.name == "service.rpc.listen"] == [logging.WARNING]


@pytest.mark.parametrize("owner", ["{user}", "{user}:{group}", ":{group}", "{uid}:{gid}"])
async def test_a_unix_socket_is_given_to_its_owner_with_its_mode(
    owner: str, start_server: StartServer, tmp_path: Path
) -> None:
    is_root = os.geteuid() == 0
    uid, gid = (12_345, 23_456) if is_root and owner == "{uid}:{gid}" else (os.geteuid(), os.getegid())
    if is_root and owner != "{uid}:{gid}":
        uid, gid = pwd.getpwnam("nobody").pw_uid, grp.getgrall()[1].gr_gid
    names = {"uid": uid, "gid": gid}
    if owner != "{uid}:{gid}":
        names |= {"user": pwd.getpwuid(uid).pw_name, "group": grp.getgrgid(gid).gr_name}  # type: ignore[dict-item]
    path = tmp_path / "a.sock"
    await start_server(listen=(f"unix:{path}",), unix_socket_owner=owner.format_map(names), unix_socket_mode="660")
    found = path.stat()
    assert found.st_uid == (uid if owner[1:4] in ("use", "uid") else os.geteuid())
    assert found.st_gid == (gid if "g" in owner else os.getegid())
    assert stat.S_IMODE(found.st_mode) == 0o660


@pytest.mark.parametrize("owner", ["no-such-user", ":no-such-group", "no-such-user:0"])
async def test_an_owner_that_is_not_known_is_refused(owner: str, start_server: StartServer, tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match=r"can't be given to .*: this machine does not know that name"):
        await start_server(listen=(f"unix:{tmp_path}/a.sock",), unix_socket_owner=owner)
