"""TLS: who can connect, which certificate clients see, and a replacement that fails no call."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from kvdepot import AsyncDepotClient, Credentials, DepotError, KvShape, SharedBuffer
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2, observability_pb2
from service.access.certificates import BadCertificate, read_certificate
from service.load_settings import BadSettings
from tests.e2e.access.calling import Calling, Denied, write_tenants
from tests.e2e.access.conftest import OPS, Connect, StartTenants
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority, Issued
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=1, num_blocks=16, block_size=4, num_heads=1, head_size=4, dtype="uint8")
GROUPS = [layouts.VLLM.without_memory(SHAPE)]


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> dict[str, str]:
    """Settings of a server with TLS."""
    cert, key = authority.issue().write(tmp_path, "depot")
    return {"tls_cert": cert, "tls_key": key}


def channel_credentials(authority: Authority, client: Issued | None = None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(authority.pem)
    return grpc.ssl_channel_credentials(authority.pem, client.key, client.cert)


async def shown(address: str) -> int:
    """Return the serial number of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


def write(issued: Issued, settings: dict[str, str]) -> None:
    write_pair(issued.cert, issued.key, settings)


def write_pair(cert: bytes, key: bytes | None, settings: dict[str, str]) -> None:
    """Write the files one after the other, as most tools do."""
    Path(settings["tls_cert"]).write_bytes(cert)
    if key is None:
        Path(settings["tls_key"]).unlink()
    else:
        Path(settings["tls_key"]).write_bytes(key)


async def is_let_in(call: Calling) -> bool:
    try:
        await call("ListSessions", observability_pb2.ListSessionsRequest())
    except Denied as denied:
        assert denied.code in ("UNAVAILABLE", "UNAUTHENTICATED")
        return False
    return True


# Who can connect


async def test_tcp_is_served_with_tls_alone_and_unix_sockets_without(
    start_server: StartServer, connect: Connect, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    server = await start_server(listen=("127.0.0.1:0", f"unix:{tmp_path}/depot.sock"), **files)
    tcp, unix = server.addresses
    assert await is_let_in(connect(tcp, credentials=channel_credentials(authority)))
    assert await is_let_in(connect(unix))
    assert not await is_let_in(connect(tcp))
    assert not await is_let_in(connect(tcp, credentials=channel_credentials(Authority("another"))))


async def test_with_a_client_ca_only_clients_with_a_certificate_connect(
    start_server: StartServer, connect: Connect, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    clients = Authority("of clients")
    server = await start_server(tls_client_ca=clients.write(tmp_path), **files)
    (address,) = server.addresses
    for client, lets_in in (
        (clients.issue("engine", ()), True),
        (None, False),
        (authority.issue("engine", ()), False),
        (clients.issue("engine", (), days=(-3, -1)), False),
    ):
        call = connect(address, credentials=channel_credentials(authority, client))
        assert await is_let_in(call) == lets_in


async def test_a_certificate_is_mapped_to_its_tenant(
    start_server: StartServer, connect: Connect, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    red = {"name": "red", "certificates": ["red.example", "spiffe://depot/red", "red cn"], "token": "red-token"}
    blue = {"name": "blue", "certificates": ["blue.example"], "token": "blue-token"}
    tenants = write_tenants(tmp_path / "tenants.json", red, blue, OPS)
    server = await start_server(tls_client_ca=authority.write(tmp_path), tenants=tenants, chunk_size=16, **files)
    (address,) = server.addresses

    def with_names(*names: x509.GeneralName, common_name: str = "x") -> grpc.ChannelCredentials:
        return channel_credentials(authority, authority.issue(common_name, names))

    red_dns, blue_dns = x509.DNSName("red.example"), x509.DNSName("blue.example")
    for credentials, token, tenant in (
        (with_names(red_dns), "", "red"),
        (with_names(x509.DNSName("other.example"), red_dns), "", "red"),
        (with_names(x509.UniformResourceIdentifier("spiffe://depot/red")), "", "red"),
        (with_names(common_name="red cn"), "", "red"),
        (with_names(blue_dns), "", "blue"),
        (with_names(blue_dns), "blue-token", "blue"),
        (with_names(common_name="unknown"), "blue-token", "blue"),
        (with_names(x509.DNSName("other.example"), common_name="red cn"), "", "CERTIFICATE_UNKNOWN"),
        (with_names(x509.RFC822Name("red.example"), common_name="red cn"), "", "CERTIFICATE_UNKNOWN"),
        (with_names(x509.DNSName("red.example.org")), "", "CERTIFICATE_UNKNOWN"),
        (with_names(common_name="unknown"), "", "CERTIFICATE_UNKNOWN"),
        (with_names(red_dns, blue_dns), "", "CREDENTIALS_CONFLICT"),
        (with_names(blue_dns), "red-token", "CREDENTIALS_CONFLICT"),
        (with_names(blue_dns), "wrong", "TOKEN_UNKNOWN"),
    ):
        call = connect(address, token, credentials)
        session_id = f"of {tenant}"
        request = observability_pb2.ReportBlockAllocationRequest(instance_id="i", model_name="m", block_size=16)
        request.records.add(session_id=session_id)
        try:
            await call("ReportBlockAllocation", request)
        except Denied as denied:
            assert (denied.code, denied.reason) == ("UNAUTHENTICATED", tenant)
        else:
            assert server.depots.named(tenant).sessions.find("i", session_id) is not None


async def test_the_python_client_shows_what_it_is_given(
    start_server: StartServer, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    tenants = write_tenants(tmp_path / "tenants.json", {"name": "red", "certificates": ["red.example"], "token": "t"})
    ca = authority.write(tmp_path)
    cert, key = authority.issue("red", (x509.DNSName("red.example"),)).write(tmp_path, "red")
    server = await start_server(tls_client_ca=ca, tenants=tenants, chunk_size=16, **files)
    (address,) = server.addresses
    token_file.write_text("t\n")
    for credentials in (
        Credentials(ca_file=ca, certificate_file=cert, key_file=key),
        Credentials(ca_file=ca, certificate_file=cert, key_file=key, token="t"),
        Credentials(ca_file=ca, certificate_file=cert, key_file=key, token_file=token_file, server_name="localhost"),
    ):
        async with (
            AsyncDepotClient(address, credentials=credentials) as client,
            await client.attach(instance_id="i", model_name="m", groups=GROUPS) as attachment,
        ):
            await attachment.store_inline("s", range(16), bytes(attachment.chunk_bytes))
            assert (await attachment.lookup("s", range(16))).matched_tokens == 16
    async with AsyncDepotClient(address, credentials=Credentials(ca_file=ca), timeout_seconds=5) as client:
        with pytest.raises(DepotError) as caught:
            await client.list_sessions()
    assert caught.value.reason == "UNREACHABLE"


# Memory of engines


async def test_a_descriptor_of_a_process_is_taken_from_a_peer_that_is_known(
    start_server: StartServer, connect: Connect, authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:

    client = authority.issue("engine", ())
    mutual = await start_server(tls_client_ca=authority.write(tmp_path), chunk_size=16, **files)
    plain = await start_server(chunk_size=16, **files)
    with SharedBuffer.create(layouts.NL_X_TWO_NB_BS_NH_HS.size_bytes(SHAPE), by="fd") as buffer:
        for server, shown_client, is_taken in ((mutual, client, True), (plain, None, False)):
            call = connect(server.addresses[0], credentials=channel_credentials(authority, shown_client))
            request = _attach_request(buffer.region)
            if is_taken:
                (answer,) = await call("AttachInstance", request)
                assert answer.transfer_backend == "host"
            else:
                with pytest.raises(Denied, match="REGION_FORBIDDEN"):
                    await call("AttachInstance", request)


def _attach_request(region: Any) -> Any:

    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE)
    return cache_pb2.AttachInstanceRequest(
        instance_id="i", model_name="m", world_size=1, groups=[group], regions=[region]
    )


# Rotation


async def test_certificates_are_replaced_under_load_without_a_call_that_fails(
    start_server: StartServer, connect: Connect, authority: Authority, files: dict[str, str]
) -> None:
    server = await start_server(chunk_size=16, disable_logging=True, **files)
    (address,) = server.addresses
    credentials = channel_credentials(authority)
    long_lived = connect(address, credentials=credentials)
    stop = asyncio.Event()
    num_calls = 0

    async def call_on(call: Calling) -> None:
        nonlocal num_calls
        while not stop.is_set():
            await call("ListSessions", observability_pb2.ListSessionsRequest())
            num_calls += 1

    async def connect_and_call() -> None:
        nonlocal num_calls
        while not stop.is_set():
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.secure_channel(address, credentials, options) as channel:
                await Calling(channel)("ListSessions", observability_pb2.ListSessionsRequest())
            num_calls += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(call_on(long_lived))
            tasks.create_task(connect_and_call())
        for _ in range(3):
            issued = authority.issue()
            write(issued, files)

            async def is_shown(serial_number: int = issued.serial_number) -> bool:
                return await shown(address) == serial_number

            await eventually(is_shown)
            await eventually(lambda before=num_calls: num_calls >= before + 16)  # type: ignore[misc]
        stop.set()


async def test_a_secret_that_is_swapped_behind_symbolic_links_is_seen(
    start_server: StartServer, authority: Authority, tmp_path: Path
) -> None:
    first, second = authority.issue(), authority.issue()
    for name, issued in (("..1", first), ("..2", second)):
        (tmp_path / name).mkdir()
        issued.write(tmp_path / name, "tls")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    server = await start_server(tls_cert=str(tmp_path / "tls.crt"), tls_key=str(tmp_path / "tls.key"))
    assert await shown(server.addresses[0]) == first.serial_number
    (tmp_path / "..new").symlink_to("..2")
    os.replace(tmp_path / "..new", tmp_path / "..data")  # noqa: PTH105 - as the kubelet does it
    shutil.rmtree(tmp_path / "..1")

    async def is_second() -> bool:
        return await shown(server.addresses[0]) == second.serial_number

    await eventually(is_second)


def broken_pairs(authority: Authority, folder: Path) -> Iterable[tuple[str, bytes, bytes | None]]:
    """Return tuples: the fault, the certificate's file, the key's file (None: it is missing)."""
    good, other = authority.issue(), authority.issue()
    yield "another's key", good.cert, other.key
    yield "no PEM", b"nothing", good.key
    yield "no key", good.cert, b""
    yield "a key that is gone", good.cert, None
    old = authority.issue(days=(-3, -1))
    yield "over", old.cert, old.key
    early = authority.issue(days=(1, 3))
    yield "not yet", early.cert, early.key


async def test_a_broken_pair_is_reported_and_the_old_certificate_goes_on(
    start_server: StartServer,
    authority: Authority,
    files: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await start_server(**files)
    (address,) = server.addresses
    before = await shown(address)
    watched = server._access.certificate
    for number, (_, cert, key) in enumerate(broken_pairs(authority, tmp_path), start=1):
        write_pair(cert, key, files)
        await eventually(lambda number=number: watched.num_refusals == number)  # type: ignore[misc]
        assert watched.is_broken
        assert await shown(address) == before
    of_depot = [each for each in caplog.records if not each.name.startswith("asyncio")]  # tests before may end late
    errors = [each.getMessage() for each in of_depot if each.levelno == logging.ERROR]
    assert len(errors) == number
    assert all("the previous content stays in use" in each for each in errors)
    assert "PRIVATE KEY" not in caplog.text

    mended = authority.issue()
    write(mended, files)
    await eventually(lambda: not watched.is_broken)
    assert await shown(address) == mended.serial_number


# A server that can't start


@pytest.mark.parametrize("number", range(6))
async def test_a_server_with_broken_files_does_not_start(
    start_server: StartServer, authority: Authority, tmp_path: Path, number: int
) -> None:
    what, cert, key = list(broken_pairs(authority, tmp_path))[number]
    paths = tmp_path / "a.crt", tmp_path / "a.key"
    paths[0].write_bytes(cert)
    if key is not None:
        paths[1].write_bytes(key)
    with pytest.raises(BadSettings, match=r"^tls_cert: .*a\.(crt|key): ") as caught:
        await start_server(tls_cert=str(paths[0]), tls_key=str(paths[1]))
    assert "\n" not in str(caught.value), what


def test_an_encrypted_key_and_a_broken_client_ca_are_refused(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue().write(tmp_path, "depot")
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    with pytest.raises(BadCertificate, match=r"ca\.crt: holds no certificate"):
        read_certificate(Path(cert), Path(key), tmp_path / "ca.crt")
    Path(key).write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(BadCertificate, match="is not a private key"):
        read_certificate(Path(cert), Path(key), None)


def test_repr_of_a_certificate_shows_no_key(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue().write(tmp_path, "depot")
    text = repr(read_certificate(Path(cert), Path(key), None))
    assert "CN=depot" in text
    assert "PRIVATE" not in text


async def test_how_long_the_certificate_is_good_for_is_a_figure(
    start_tenants: StartTenants, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue(days=(-1, 2)).write(tmp_path, "short")
    server = await start_tenants(OPS, tls_cert=cert, tls_key=key)
    seconds_left = server._access.certificate_seconds_left
    assert 2 * 86_400 - 60 < seconds_left < 2 * 86_400
