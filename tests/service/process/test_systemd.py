"""systemd learns the state of the service, and gives a descriptor to the next process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.process.systemd import Systemd, take_stored
from tests.fakes.service_manager import FakeServiceManager
from tests.fakes.takeover import memfd

NAME = "kvdepot-l1"
VARIABLES = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

NEXT_PROCESS = """
import json, os
from service.process.systemd import take_stored
fds = take_stored(os.environ, "kvdepot-l1")
print(json.dumps({
    "contents": [os.pread(fd, 99, 0).decode() for fd in fds],
    "inheritable": [os.get_inheritable(fd) for fd in range(3, 6) if os.path.exists(f"/proc/self/fd/{fd}")],
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


@pytest.fixture(params=["a path", "an abstract name"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/notify" if request.param == "a path" else f"@{tmp_path}/notify"


@pytest.fixture
def manager(address: str) -> Iterator[FakeServiceManager]:
    started = FakeServiceManager(address.replace("@", "\0"))
    yield started
    started.close()


def test_the_state_of_the_service(address: str, manager: FakeServiceManager) -> None:
    systemd = Systemd(address)
    assert systemd.is_present
    systemd.ready("serves on 127.0.0.1:50051")
    assert manager.receive() == {"READY": "1", "STATUS": "serves on 127.0.0.1:50051"}
    systemd.status("adopted 7 chunks")
    assert manager.receive() == {"STATUS": "adopted 7 chunks"}
    systemd.stopping()
    assert manager.receive() == {"STOPPING": "1"}


def test_a_status_is_one_short_line(address: str, manager: FakeServiceManager) -> None:
    Systemd(address).status("a\nMAINPID=1\r\n" + "é" * 9_999)
    values = manager.receive()
    assert values.keys() == {"STATUS"}
    assert values["STATUS"].startswith("a MAINPID=1 ééé")
    assert len(values["STATUS"].encode()) <= 1_000


def test_the_next_process_has_the_memory(address: str, manager: FakeServiceManager) -> None:
    fd = memfd(b"chunks")
    Systemd(address).store(fd, NAME)
    assert manager.receive() == {"FDSTORE": "1", "FDPOLL": "0", "FDNAME": NAME}
    os.close(fd)  # as if this process were killed
    assert json.loads(manager.start(NEXT_PROCESS)) == {"contents": ["chunks"], "inheritable": [False], "variables": []}


def test_the_next_process_leaves_other_descriptors_alone(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    manager = FakeServiceManager(address, max_stored=3)
    systemd = Systemd(address)
    for content, name in (b"other", "other"), (b"chunks", NAME), (b"more", NAME):
        fd = memfd(content)
        systemd.store(fd, name)
        manager.receive()
        os.close(fd)
    found = json.loads(manager.start(NEXT_PROCESS))
    manager.close()
    assert found == {"contents": ["chunks", "more"], "inheritable": [False] * 3, "variables": []}


def test_a_descriptor_is_kept_once_and_replaced_on_demand(address: str, manager: FakeServiceManager) -> None:
    first, second = memfd(b"first"), memfd(b"second")
    systemd = Systemd(address)
    for _ in range(2):
        systemd.store(first, NAME)
        manager.receive()
    systemd.remove_stored(NAME)
    assert manager.receive() == {"FDSTOREREMOVE": "1", "FDNAME": NAME}
    systemd.store(second, NAME)
    manager.receive()
    os.close(first)
    os.close(second)
    assert json.loads(manager.start(NEXT_PROCESS))["contents"] == ["second"]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1", "relative"])
def test_without_systemd_nothing_happens(address: str | None) -> None:
    systemd = Systemd(address)
    systemd.ready("serves")
    systemd.store(0, NAME)
    assert not systemd.is_present
    assert repr(systemd) == "<Systemd absent>"


def test_a_manager_that_is_gone_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Systemd(str(tmp_path / "gone")).ready("serves")
    assert "SystemdNotNotified values=READY,STATUS error=[Errno 2]" in caplog.text


def test_a_manager_that_reads_nothing_holds_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        full.bind(address)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"x", address)
        Systemd(address).ready("serves")
    assert "SystemdNotNotified values=READY,STATUS" in caplog.text


def test_descriptors_for_another_process_are_left_alone() -> None:
    fd = memfd()
    os.set_inheritable(fd, True)
    environment = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": str(fd), "LISTEN_FDNAMES": ":".join([NAME] * fd)}
    assert take_stored(environment, NAME) == []
    assert os.get_inheritable(fd)
    assert environment == {}
    os.close(fd)


@pytest.mark.parametrize(
    ("pid", "count"),
    [("", "1"), ("me", ""), ("x", "1"), (None, "many"), (None, "-1"), (None, "99999"), (None, "0"), ("1" * 9_999, "1")],
)
def test_wrong_variables_are_no_descriptors(pid: str | None, count: str) -> None:
    environment = {"LISTEN_PID": pid or str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": NAME, "HOME": "/"}
    if pid == "":
        del environment["LISTEN_PID"]
    flags = [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in range(3)]
    assert take_stored(environment, NAME) == []
    assert environment == {"HOME": "/"}
    assert [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in range(3)] == flags
