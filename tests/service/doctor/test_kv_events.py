"""The doctor's facts of the addresses of KV events are what a depot would meet."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from service.doctor.kv_events import bind_errors
from service.settings import Settings


def errors_of(kv_events: str, kv_events_replay: str = "") -> list[tuple[str, str, bool]]:
    settings = Settings.model_construct(kv_events=kv_events, kv_events_replay=kv_events_replay)
    return [(each.setting, each.error, each.is_in_use) for each in bind_errors(settings)]


def test_free_addresses_and_none_are_no_fault(tmp_path: Path) -> None:
    assert errors_of("") == []
    assert errors_of("tcp://127.0.0.1:0", "tcp://*:0") == []
    assert errors_of(f"ipc://{tmp_path}/events") == []


def test_a_port_that_another_process_has_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert errors_of(taken) == [("kv_events", "Address already in use", True)]
        assert errors_of("tcp://127.0.0.1:0", taken) == [("kv_events_replay", "Address already in use", True)]
    assert errors_of(taken) == []


def test_an_address_of_another_machine_is_found() -> None:
    ((setting, _, is_in_use),) = errors_of("tcp://203.0.113.1:5557")
    assert (setting, is_in_use) == ("kv_events", False)


def test_a_missing_folder_is_found_and_a_socket_that_is_in_use_stays(tmp_path: Path) -> None:
    assert errors_of(f"ipc://{tmp_path}/none/events") == [("kv_events", "No such file or directory", False)]
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(str(tmp_path / "events"))
        serving.listen()
        assert errors_of(f"ipc://{tmp_path}/events") == []
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "events"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_this_user_may_not_write_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert errors_of(f"ipc://{tmp_path}/events") == [("kv_events", "Permission denied", False)]
