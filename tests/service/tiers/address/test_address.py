"""The address of a tier says where it is. A wrong one is refused in words, and never with a secret in them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.tiers.address.address import BadAddress, TierAddress, parse_all

DISK = "disk:///var/lib/kvdepot?size=200GiB"


def test_a_disk_has_a_folder_a_size_and_the_defaults() -> None:
    address = TierAddress.parse("disk:///var/lib/kv%20depot?size=200GiB&write_budget=1TB&read_workers=4")
    assert (address.kind, address.name, address.path) == ("disk", "disk", "/var/lib/kv depot")
    assert address.options == {
        "size": 200 << 30,
        "write_budget": 10**12,
        "read_workers": 4,
        "write_workers": 2,
        "queue": 256 << 20,
    }


def test_s3_has_a_bucket_and_a_prefix() -> None:
    address = TierAddress.parse("s3://my.bucket/a/b?endpoint=http://minio:9000&path_style=TRUE&region=eu-west-1")
    assert (address.host, address.port, address.path) == ("my.bucket", None, "/a/b")
    assert address.options["endpoint"] == "http://minio:9000"
    assert address.options["path_style"] is True
    assert "credentials_file" not in address.options


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("valkey://cache", "cache", 6379, ""),
        ("redis://10.0.0.1:7000/3", "10.0.0.1", 7000, "/3"),
        ("rediss://[::1]?ca_file=ca.pem", "::1", 6379, ""),
        ("valkeys://[fd00::2]:1/", "fd00::2", 1, "/"),
        ("mooncake://master?segment=0", "master", 50051, ""),
    ],
)
def test_a_server_has_a_host_and_a_port(url: str, host: str, port: int, path: str) -> None:
    address = TierAddress.parse(url)
    assert (address.host, address.port, address.path) == (host, port, path)


@pytest.mark.parametrize(
    "url", [DISK, "s3://bucket/prefix?region=x", "valkeys://[::1]:6379/2?user=me", "mooncake://m:1?segment=1GiB"]
)
def test_its_url_is_read_back_as_the_same_address(url: str) -> None:
    address = TierAddress.parse(url)
    assert TierAddress.parse(address.url) == address
    assert str(address) == url.partition("?")[0]


def test_a_name_stands_for_the_tier() -> None:
    assert TierAddress.parse(f"{DISK}&name=nvme-0").name == "nvme-0"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "an address begins with one of disk://, s3://, valkey://, valkeys://, redis://, rediss://, mooncake://"),
        ("/var/lib/kvdepot", "an address begins with one of disk://"),
        ("disk:/var/lib?size=1GiB", "an address begins with one of disk://"),
        ("valky://host", "is valkey:// meant?"),
        ("disk:///d", "disk:///d: size is missing, such as ?size=200GiB"),
        ("mooncake://m", "mooncake://m: segment is missing"),
        ("disk://var/lib/kvdepot?size=1GiB", "write disk:///folder, with three slashes"),
        ("disk://?size=1GiB", "is no folder"),
        ("disk:///?size=1GiB", "is no folder"),
        ("disk:///a/../etc?size=1GiB", "is no folder"),
        ("disk:///a%00b?size=1GiB", "is no folder"),
        ("disk:///d?size=1XB", "size=1XB '1XB' is not like 8GiB, 500MB or 4096"),
        ("disk:///d?size=1KiB", "size=1KiB is not at least 16MiB"),
        ("disk:///d?size=9999999TiB", "size=9999999TiB is above 1 EiB"),
        ("disk:///d?size=1GiB&size=2GiB", "size is given twice"),
        ("disk:///d?size", "options are like ?name=value&name=value"),
        ("disk:///d?size=1GiB&read_workers=0", "read_workers=0 is no number from 1 to 64"),
        ("disk:///d?size=1GiB&read_workers=٣", "is no number from 1 to 64"),
        ("disk:///d?size=1GiB&read_workers=" + "9" * 5000, "is no number from 1 to 64"),
        ("disk:///d?size=1GiB&queue=0", "queue=0 is not at least 1"),
        ("disk:///d?size=1GiB&sice=1", "there is no option sice; is size meant?"),
        ("disk:///d?size=1GiB&zzz=1", "there is no option zzz"),
        ("disk:///d?size=1GiB&region=x", "region is no option of disk://, but of s3://"),
        ("disk:///d?size=1GiB#1", "write %23"),
        ("disk:///d?size=1GiB&name=A B", "name is not of"),
        ("disk:///d?size=1GiB&name=l1", "or it is l1"),
        ("s3:///prefix", "is not like s3://bucket/prefix"),
        ("s3://bucket:9000/prefix", "a server goes into the option endpoint"),
        ("s3://Bucket", "is not like s3://bucket/prefix"),
        ("s3://bucket?endpoint=minio:9000", "is not an address such as https://"),
        ("s3://bucket?path_style=maybe", "path_style=maybe is neither true nor false"),
        ("s3://bucket?region=", "region= is empty"),
        ("valkey://", "has no host"),
        ("valkey://:6379", "has no host"),
        ("valkey://host:http", "wrong host or port"),
        ("valkey://host:70000", "wrong host or port"),
        ("valkey://[::1", "wrong host or port"),
        ("valkey://host/db", "the path is no number of a database"),
        ("valkey://host/1?cluster=true", "a cluster has no other database than 0"),
        ("valkey://host?ca_file=a", "ca_file is no option of valkey://, but of s3://, valkeys://, rediss://"),
        ("valkeys://host?cert_file=a", "cert_file and key_file need each other"),
        ("mooncake://m:1/path?segment=0", "mooncake:// has no path"),
        ("mooncake://m:1?segment=0&protocol=udp", "protocol=udp is none of tcp, rdma"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(BadAddress) as caught:
        TierAddress.parse(url)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "valkey://hunter2@host",
        "valkey://me:hunter2@host:6379",
        "valkey://me:hunter2@host:http",
        "valkey://me:hunter2@[::1",
        "me:hunter2@host",
        "me:hunter2@[host",
        "valkey://host?password=hunter2",
        "valkey://host?pasword=hunter2",
        "valkey://host?hunter2",
        "s3://hunter2:x@bucket",
        "s3://bucket?secret_access_key=hunter2",
        "s3://bucket?endpoint=https://me:hunter2@minio",
        "s3://bucket?endpoint=minio/hunter2@",
        "disk:///d?size=1GiB&secret=hunter2",
        "https://me:hunter2@host",
    ],
)
def test_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadAddress) as caught:
        TierAddress.parse(url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)


def test_a_password_in_the_options_is_sent_into_a_file() -> None:
    with pytest.raises(BadAddress, match="name that with password_file"):
        TierAddress.parse("valkey://host?password=x")


def test_names_and_places_of_a_depots_tiers_differ() -> None:
    two = parse_all([DISK, "disk:///mnt/nvme1?size=1TiB&name=nvme1"])
    assert [each.name for each in two] == ["disk", "nvme1"]
    with pytest.raises(BadAddress, match=r"^disk:///b: disk:///a has the name disk, too; add name= to one of them$"):
        parse_all(["disk:///a?size=1GiB", "disk:///b?size=1GiB"])
    with pytest.raises(BadAddress, match=r"^disk:///a/: its place is another tier's, too$"):
        parse_all(["disk:///a?size=1GiB", "disk:///a/?size=1GiB&name=b"])
    assert len(parse_all(["valkey://h?prefix=a:", "valkey://h?prefix=b:&name=b"])) == 2


def test_more_tiers_than_a_chunk_has_bits_for_are_refused() -> None:
    with pytest.raises(BadAddress, match="9 tiers are more than 8"):
        parse_all(f"disk:///{number}?size=1GiB&name=disk{number}" for number in range(9))


def test_an_io_worker_imports_it_without_pydantic() -> None:
    code = "import sys, service.tiers.store; print(sorted({'pydantic', 'grpc', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
