"""What a user writes into SGLang's extra config."""

from __future__ import annotations

from typing import Any

import pytest

from kvdepot.connector.config import ConfigError
from kvdepot.sglang.settings import backend_settings

NEEDED = {"interface_v1": 1, "allocator": "shm"}


def test_settings_of_sglang_and_of_the_depot_share_one_object() -> None:
    settings = backend_settings(
        {**NEEDED, "backend_name": "kvdepot", "kvdepot.address": "unix:/x", "kvdepot.instance_id": "pod-1"}, {}
    )
    assert (settings.connector.address, settings.instance_id) == ("unix:/x", "pod-1")


def test_the_address_may_come_from_the_environment() -> None:
    settings = backend_settings(NEEDED, {"KVDEPOT_ADDRESS": "unix:/y"})
    assert (settings.connector.address, settings.instance_id) == ("unix:/y", "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, '"interface_v1": 1'),
        ({"allocator": "shm"}, '"interface_v1": 1'),
        ({"interface_v1": 1}, '"allocator": "shm"'),
        ({**NEEDED, "kvdepot.adress": "unix:/x"}, "did you mean kvdepot.address"),
        ({**NEEDED, "address": "unix:/x"}, "did you mean kvdepot.address"),
        ({**NEEDED, "instance_id": "x"}, "did you mean kvdepot.instance_id"),
        ({**NEEDED, "kvdepot.address": "127.0.0.1:50051"}, "over a unix socket"),
        ({**NEEDED, "kvdepot.instance_id": 7}, "kvdepot.instance_id: text"),
        ({**NEEDED, "kvdepot.instance_id": "x" * 129}, "at most 128 bytes"),
        ({**NEEDED, "kvdepot.report_blocks": True}, "kvdepot.report_blocks has no effect with SGLang"),
        ({**NEEDED, "kvdepot.lookup_timeout_seconds": 0}, "a positive number of seconds"),
    ],
    ids=str,
)
def test_a_wrong_setting_says_what_to_set(given: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        backend_settings(given, {})
    assert message in str(raised.value)
    assert str(raised.value).startswith("--hicache-storage-backend-extra-config: ")
