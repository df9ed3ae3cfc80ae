"""The file of tenants: its content, and refusals that reveal no secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.access.tenants import TenantLimits, Token, token_hash
from service.access.tenants_file import BadTenants, parse_tenants, read_tenants
from service.tiers.address.address import parse_all
from service.tiers.disk.disk_layout import smallest_disk_bytes
from tests.e2e.access.calling import sha256

L1_BYTES = 64 << 30
DISK_BYTES = 100 << 30
DEFAULTS = TenantLimits(max_concurrent_rpcs=7, max_attachments=8, max_bytes_in_flight=9, max_pinned_bytes=11)
SECRET = "s3cret-token-that-is-here-by-mistake"

FULL = {
    "tenants": [
        {
            "name": "acme",
            "tokens": [
                sha256("one"),
                {"sha256": sha256("two"), "expire_time": datetime(2030, 1, 2, tzinfo=UTC)},
            ],
            "certificates": ["acme.example", "spiffe://cluster/acme"],
            "limits": {"max_concurrent_rpcs": 3, "max_bytes_in_flight": "2GiB", "max_pinned": "5GiB"},
            "l1_share": "16GiB",
            "disk_share": "100GiB",
        },
        {"name": "ops", "admin": True, "tokens": [sha256("three")]},
    ]
}


@pytest.mark.parametrize("is_json", [False, True])
def test_all_that_a_file_can_say(is_json: bool) -> None:
    text = json.dumps(FULL, default=lambda moment: moment.isoformat()) if is_json else yaml.safe_dump(FULL)
    tenants = parse_tenants(text.encode(), DEFAULTS, L1_BYTES, DISK_BYTES, is_json=is_json)
    acme, ops = tenants.by_name["acme"], tenants.by_name["ops"]
    assert (acme.is_admin, ops.is_admin) == (False, True)
    assert acme.limits == TenantLimits(
        max_concurrent_rpcs=3, max_attachments=8, max_bytes_in_flight=2 << 30, max_pinned_bytes=5 << 30
    )
    assert ops.limits == DEFAULTS
    assert (acme.l1_share_bytes, ops.l1_share_bytes) == (16 << 30, 0)
    assert (acme.disk_share_bytes, ops.disk_share_bytes) == (100 << 30, 0)
    moment = datetime(2030, 1, 2, tzinfo=UTC).timestamp()
    assert acme.tokens == (Token(hash=token_hash("one")), Token(hash=token_hash("two"), expire_time=moment))
    assert ops.tokens == (Token(hash=token_hash("three")),)
    assert tenants.of_certificate([b"spiffe://cluster/acme", b"other", b"acme.example"]) == [acme]
    assert tenants.of_certificate([b"other"]) == []


def tenant(**changes: Any) -> dict[str, Any]:
    return {"name": "acme", "tokens": [sha256("one")], **changes}


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "the file: "),
    "no tenants": ({"tenants": []}, "tenants: "),
    "a list": ([tenant()], "the file: "),
    "another key": ({"tenants": [tenant()], "tenant": []}, "tenant: "),
    "no name": ({"tenants": [{"tokens": [sha256("one")]}]}, "tenants[0].name: "),
    "an unknown key": ({"tenants": [tenant(token=SECRET)]}, "tenants[0].token: "),
    "a plain token": ({"tenants": [tenant(tokens=[SECRET])]}, "tenants[0].tokens[0].sha256: is not a SHA-256"),
    "a plain token with a time": (
        {"tenants": [tenant(tokens=[{"sha256": SECRET, "expire_time": "2030-01-01T00:00:00Z"}])]},
        "tenants[0].tokens[0].sha256: is not a SHA-256",
    ),
    "a hash in upper case": ({"tenants": [tenant(tokens=[sha256("one").upper()])]}, "tenants[0].tokens[0].sha256: "),
    "tokens that are one": ({"tenants": [tenant(tokens=SECRET)]}, "tenants[0].tokens: "),
    "a time without a zone": (
        {"tenants": [tenant(tokens=[{"sha256": sha256("one"), "expire_time": "2030-01-01T00:00:00"}])]},
        "tenants[0].tokens[0].expire_time: ",
    ),
    "an empty name of a certificate": ({"tenants": [tenant(certificates=[""])]}, "tenants[0].certificates[0]: "),
    "no credential": ({"tenants": [{"name": "acme"}]}, "tenants[0]: 'acme' has neither tokens nor certificates"),
    "an admin by accident": ({"tenants": [tenant(admin="no")]}, "tenants[0].admin: "),
    "a limit of nothing": (
        {"tenants": [tenant(limits={"max_concurrent_rpcs": 0})]},
        "tenants[0].limits.max_concurrent",
    ),
    "an unknown limit": ({"tenants": [tenant(limits={"max_rpcs": 1})]}, "tenants[0].limits.max_rpcs: "),
    "a size that is none": (
        {"tenants": [tenant(limits={"max_bytes_in_flight": "lots"})]},
        "tenants[0].limits.max_bytes_in_flight: ",
    ),
    "shares that L1 does not have": (
        {"tenants": [tenant(l1_share="40GiB"), tenant(name="b", tokens=[sha256("two")], l1_share="25GiB")]},
        "tenants: the l1_share of all is 65GiB, and L1 has 64GiB",
    ),
    "shares that the smallest disk does not have": (
        {"tenants": [tenant(disk_share="60GiB"), tenant(name="b", tokens=[sha256("two")], disk_share="41GiB")]},
        "tenants: the disk_share of all is 101GiB, and the smallest disk tier has 100GiB for chunks",
    ),
    "a share of nothing on a disk": ({"tenants": [tenant(disk_share="0")]}, "tenants[0].disk_share: "),
    "a share of nothing": ({"tenants": [tenant(l1_share=0)]}, "tenants[0].l1_share: "),
    "a name twice": (
        {"tenants": [tenant(), tenant(tokens=[sha256("two")])]},
        "tenants: the name 'acme' stands in it twice",
    ),
    "a token of two": ({"tenants": [tenant(), tenant(name="other")]}, "tenants: the token "),
    "a certificate of two": (
        {"tenants": [tenant(certificates=["a"]), tenant(name="b", tokens=[sha256("two")], certificates=["a"])]},
        "tenants: the certificate 'a' ",
    ),
    **{
        f"the name {name!r}": ({"tenants": [tenant(name=name)]}, "tenants[0].name: ")
        for name in ("", "a/b", "A", "a b", "-a", "a.", "ä", "a\n", "a" * 64, 5)
    },
}


@pytest.mark.parametrize("what", BAD)
def test_a_fault_is_reported_with_its_place_and_without_a_secret(what: str) -> None:
    content, message = BAD[what]
    for text, is_json in ((yaml.safe_dump(content), False), (json.dumps(content), True)):
        with pytest.raises(BadTenants) as caught:
            parse_tenants(text.encode(), DEFAULTS, L1_BYTES, DISK_BYTES, is_json=is_json)
        assert message in str(caught.value)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None, "a traceback would show the cause, and with it the values"


@pytest.mark.parametrize(
    "text", [f"tenants: [{SECRET}", f"{SECRET}: {SECRET}: x", "\x00", "\tx", "!!python/object:a.b"]
)
def test_a_file_that_is_no_yaml_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(BadTenants) as caught:
        parse_tenants(text.encode(), DEFAULTS, L1_BYTES)
    assert str(caught.value) == "the file is not YAML"


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTenants, match="is not JSON"):
        parse_tenants(b"\xff\xfe", DEFAULTS, L1_BYTES, is_json=True)
    with pytest.raises(BadTenants, match="No such file"):
        read_tenants(tmp_path / "nothing.yaml", DEFAULTS, L1_BYTES)
    with pytest.raises(BadTenants, match="Is a directory"):
        read_tenants(tmp_path, DEFAULTS, L1_BYTES)


def test_a_share_of_a_disk_needs_a_disk_tier() -> None:
    text = json.dumps({"tenants": [tenant(disk_share="1GiB")]}).encode()
    with pytest.raises(BadTenants, match="tenants: there is a disk_share, and no disk tier"):
        parse_tenants(text, DEFAULTS, L1_BYTES)


def test_the_smallest_disk_tier_counts() -> None:
    urls = ["disk:///a?size=4GiB&name=a", "valkey://host", "disk:///b?size=1GiB&name=b"]
    smallest = smallest_disk_bytes(parse_all(urls))
    assert smallest is not None and 1_000_000_000 < smallest < 1 << 30
    assert smallest_disk_bytes(parse_all(["valkey://host"])) is None
