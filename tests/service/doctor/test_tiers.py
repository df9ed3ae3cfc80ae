"""The doctor finds what would make a tier useless, slow or unsafe, and says how to fix it."""

from __future__ import annotations

import fcntl
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.doctor import disk_tiers, tiers
from service.doctor.examine import examine
from service.doctor.facts import DiskTierFacts, Facts, FileSystem, Holder, TierFacts
from service.doctor.findings import Finding, Status
from service.load_settings import load
from service.settings import Settings
from service.tiers.address.address import TierAddress
from service.tiers.stores.disk_records import MAGIC
from tests.fakes.healthy_machine import GIB, HEALTHY

FOLDER = "/var/lib/kvdepot"
SPACE = DiskTierFacts(free_bytes=300 * GIB, can_read_directly=True)


def disk(url: str = f"disk://{FOLDER}?size=200GiB", **changed: Any) -> TierFacts:
    return TierFacts(address=TierAddress.parse(url), disk=replace(SPACE, **changed))


def server(url: str, shown: str = "cache:6379", **changed: Any) -> TierFacts:
    return TierFacts(address=TierAddress.parse(url), server=shown, **changed)


def found(tier: TierFacts, facts: Facts = HEALTHY) -> Finding:
    findings = examine(replace(facts, tiers=(tier,)), Settings.model_construct(l1_size=64 * GIB))
    return findings[f"tier {tier.address.name}"]


RUNNING = replace(HEALTHY, listeners=(replace(HEALTHY.listeners[0], holder=Holder.DEPOT),))

HEALTHY_TIERS = [
    (disk(), HEALTHY, f"{FOLDER} starts empty: 200 GiB of 300 GiB that are free"),
    (disk(is_new=False, can_read_directly=None), HEALTHY, f"{FOLDER} keeps its chunks: 200 GiB of 300 GiB"),
    (disk(free_bytes=200 * GIB), HEALTHY, "200 GiB of 200 GiB"),
    (disk(used_by=77), RUNNING, f"{FOLDER}: the running depot uses it"),
    (server("valkey://localhost", "localhost:6379"), HEALTHY, "localhost:6379 answers"),
    (server("valkeys://cache?password_file=p"), HEALTHY, "cache:6379 answers"),
    (server("rediss://cache?cert_file=c&key_file=k"), HEALTHY, "cache:6379 answers"),
    (server("s3://bucket", "s3.amazonaws.com:443"), HEALTHY, "s3.amazonaws.com:443 answers"),
    (server("s3://bucket?endpoint=http://[::1]:9000", "[::1]:9000"), HEALTHY, "[::1]:9000 answers"),
    (server("mooncake://m?segment=136GiB", "m:50051"), HEALTHY, "m:50051 answers"),
    (server("mooncake://m?segment=137GiB", "m:50051"), RUNNING, "m:50051 answers"),
]


@pytest.mark.parametrize(("tier", "facts", "what"), HEALTHY_TIERS)
def test_a_healthy_tier_needs_no_fix(tier: TierFacts, facts: Facts, what: str) -> None:
    finding = found(tier, facts)
    assert (finding.status, finding.fix) == (Status.OK, "")
    assert what in finding.what


BROKEN = [
    (disk(error="there is no folder /var/lib"), "failure", f"{FOLDER}: there is no folder /var/lib", "install -d"),
    (disk(used_by=77), "failure", "the process 77 uses it", "end that process"),
    (disk(used_by=0), "failure", "another process uses it", "end that process"),
    (disk(file_system=FileSystem.NETWORK), "failure", "nothing can end a read that hangs", "a disk of this machine"),
    (disk(free_bytes=200 * GIB - 1), "failure", "200 GiB do not fit", "lower size"),
    (disk(file_system=FileSystem.MEMORY), "warning", "is in memory", "raise l1_size"),
    (disk(file_system=FileSystem.OVERLAY), "warning", "go with the container", "mount a volume"),
    (disk(can_read_directly=False), "warning", "no O_DIRECT", "ext4 or XFS"),
    (
        replace(disk(), file_faults=("secret_file=/s: it is empty",)),
        "failure",
        "secret_file=/s: it is empty",
        "correct",
    ),
    (replace(disk(), files_readable_by_all=("secret_file=/s",)), "warning", "can read secret_file=/s", "chmod 600"),
    (server("s3://bucket", missing_package="kvdepot[s3]"), "failure", "not installed", "pip install 'kvdepot[s3]'"),
    (server("valkeys://cache", server_error="timed out"), "failure", "cache:6379: timed out", "network policy"),
    (server("valkeys://cache", open_error="WRONGPASS"), "failure", "cache:6379: WRONGPASS", "correct the options"),
    (server("valkey://cache?password_file=p"), "warning", "can read the password", "valkeys://"),
    (server("redis://cache"), "warning", "can read and write the chunks", "password_file"),
    (server("rediss://cache"), "warning", "can read and write the chunks", "cert_file"),
    (server("s3://bucket?endpoint=http://minio", "minio:80"), "warning", "can read the chunks", "TLS"),
    (server("mooncake://m?segment=137GiB", "m:50051"), "failure", "137 GiB does not fit: L1 leaves 136 GiB", "lower"),
]


@pytest.mark.parametrize(("tier", "status", "what", "fix"), BROKEN)
def test_a_broken_tier_is_reported_with_its_fix(tier: TierFacts, status: str, what: str, fix: str) -> None:
    finding = found(tier)
    assert (finding.status, what in finding.what, fix in finding.fix) == (status, True, True), finding


# What is gathered


def gathered(*urls: str) -> tuple[TierFacts, ...]:
    return tiers.all_of(load({"l2": urls}), os.environ)


@pytest.fixture
def rude() -> Iterator[int]:
    """Return the port of a server that accepts connections, and answers each request with the same error."""

    class Refuses(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                self.wfile.write(b"-ERR go away\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_that_does_not_listen_is_told_from_one_that_refuses(rude: int) -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        urls = [f"valkey://127.0.0.1:{port}?name=t{port}" for port in (rude, silent.getsockname()[1])]
        refuses, dead = gathered(*urls)
    assert (refuses.server_error, dead.server_error) == ("", "Connection refused")
    assert "go away" in refuses.open_error
    assert (refuses.server, dead.open_error) == (f"127.0.0.1:{rude}", "")


def test_a_name_that_is_not_known_is_an_error() -> None:
    [facts] = gathered("valkey://nothing.invalid")
    assert facts.server_error


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("disk:///d?size=1GiB", None),
        ("s3://bucket", ("s3.amazonaws.com", 443)),
        ("s3://bucket?region=eu-west-1", ("s3.eu-west-1.amazonaws.com", 443)),
        ("s3://bucket?endpoint=http://[::1]:9000", ("::1", 9000)),
        ("s3://bucket?endpoint=https://minio/path", ("minio", 443)),
        ("mooncake://master?segment=0", ("master", 50051)),
    ],
)
def test_each_kind_has_its_server(url: str, server: tuple[str, int] | None) -> None:
    assert tiers.server_of(TierAddress.parse(url)) == server


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiers.PACKAGES, "disk", ("no_such_module", "kvdepot[disk]"))
    [facts] = gathered("disk:///var/lib/none/kvdepot?size=1GiB")
    assert facts.missing_package == "kvdepot[disk]"


def folder_facts(folder: Path) -> DiskTierFacts:
    return disk_tiers.facts_of(TierAddress.parse(f"disk://{folder}?size=1GiB"))


def test_a_folder_that_the_depot_can_make_is_fine_and_is_not_made(tmp_path: Path) -> None:
    facts = folder_facts(tmp_path / "tier")
    assert (facts.error, facts.is_new, facts.used_by) == ("", True, None)
    assert facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_memory_is_found(tmp_path: Path) -> None:
    assert folder_facts(Path("/dev/shm")).error == "every user can change it"
    shared = Path(f"/dev/shm/kvdepot-test-{os.getpid()}")
    shared.mkdir()
    try:
        assert folder_facts(shared).file_system is FileSystem.MEMORY
    finally:
        shared.rmdir()


def test_a_folder_that_can_not_be_used_says_why(tmp_path: Path) -> None:
    assert folder_facts(tmp_path / "a/b").error == f"there is no folder {tmp_path}/a"
    (tmp_path / "file").write_text("x")
    assert folder_facts(tmp_path / "file").error == "Not a directory"
    (tmp_path / "link").symlink_to(tmp_path)
    assert folder_facts(tmp_path / "link").error == "it is a symbolic link, which is not followed"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert folder_facts(tmp_path / "open").error == "every user can change it"


def write_records(folder: Path, start: bytes = MAGIC, mode: int = 0o600) -> Path:
    path = folder / "records"
    path.write_bytes(start.ljust(3072, b"\0") + b"4711 99 pid:[1]".ljust(1024, b"\0"))
    path.chmod(mode)
    return path


def test_files_of_a_tier_are_kept_and_their_space_is_not_needed_twice(tmp_path: Path) -> None:
    write_records(tmp_path)
    facts = folder_facts(tmp_path)
    assert (facts.error, facts.is_new, facts.used_by) == ("", False, None)


def test_the_depot_that_uses_a_tier_is_named(tmp_path: Path) -> None:
    with write_records(tmp_path).open("rb") as records:
        fcntl.flock(records, fcntl.LOCK_SH)
        assert folder_facts(tmp_path).used_by == 4711
    assert folder_facts(tmp_path).used_by is None


def test_files_that_are_no_tiers_are_found(tmp_path: Path) -> None:
    write_records(tmp_path, b"something else")
    assert folder_facts(tmp_path).error == "records is no file of a disk tier"
    write_records(tmp_path, mode=0o640)
    assert folder_facts(tmp_path).error == "records has the mode 0640, so others can use it"
    (tmp_path / "records").unlink()
    (tmp_path / "chunks").mkdir()
    assert "chunks" in folder_facts(tmp_path).error
