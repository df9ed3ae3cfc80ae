"""An address is read as gRPC reads it, and one that gRPC would misread is refused with what to give instead."""

from __future__ import annotations

import pytest

from kvdepot.cli.address import BadAddress, Tcp, Unix, read_address


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:50051", Tcp("127.0.0.1", 50051)),
        ("depot.svc:1", Tcp("depot.svc", 1)),
        ("[::1]:65535", Tcp("::1", 65535)),
        ("dns:///depot:50051", Tcp("depot", 50051)),
        ("ipv4:127.0.0.1:50051", Tcp("127.0.0.1", 50051)),
        ("unix:/run/kvdepot.sock", Unix("/run/kvdepot.sock")),
        ("unix:///run/kvdepot.sock", Unix("/run/kvdepot.sock")),
        ("unix:kvdepot.sock", Unix("kvdepot.sock")),
        ("unix-abstract:kvdepot", Unix("\0kvdepot")),
    ],
)
def test_what_grpc_takes_is_read(text: str, place: Tcp | Unix) -> None:
    assert read_address(text) == place


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", "it is empty", "HOST:PORT, [IPV6]:PORT or unix:/PATH"),
        ("foo", "it has no port", "give foo:50051"),
        ("host:", "the port is missing", "give host:50051"),
        (":50051", "it has no host", "give 127.0.0.1:50051"),
        ("host:99999", "99999 is no port", "from 1 to 65535"),
        ("host:0", "0 is no port", "from 1 to 65535"),
        ("host:http", "http is no port", "from 1 to 65535"),
        ("::1:50051", "brackets", "give [::1]:50051"),
        ("fe80::1", "brackets", "give [fe80::1]:50051"),
        ("unix:", "lacks the path", "unix:/PATH"),
        ("unix://", "lacks the path", "unix:/PATH"),
        ("/run/kvdepot.sock", "a path is not enough", "give unix:/run/kvdepot.sock"),
        ("http://127.0.0.1:50051/", "http:// does not belong", "give 127.0.0.1:50051, without http://"),
        ("unix:/" + "x" * 107, "107 bytes", "shorter path"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_give(text: str, problem: str, hint: str) -> None:
    with pytest.raises(BadAddress) as raised:
        read_address(text)
    assert problem in raised.value.cause.problem
    assert hint in raised.value.cause.hint
