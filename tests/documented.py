"""The errors that the contract names for each RPC, read from the comments of protos/."""

from __future__ import annotations

import re
from pathlib import Path

import grpc

PROTOS = Path(__file__).parents[1] / "protos" / "kvdepot" / "v1"


def documented_errors() -> dict[str, set[tuple[str, str]]]:
    """Return the (code, reason) pairs that the protos name for each RPC; under "" those of every RPC."""
    documented: dict[str, set[tuple[str, str]]] = {"": set()}
    for path in sorted(PROTOS.glob("*.proto")):
        found: set[tuple[str, str]] = set()
        for line in path.read_text().splitlines():
            line = line.strip()
            listed = re.fullmatch(r"// +([A-Z_]{6,}) +([A-Z_]{6,}(?:, [A-Z_]{6,})*)(?::.*)?", line)
            if listed and hasattr(grpc.StatusCode, listed[1]):
                found |= {(listed[1], reason) for reason in listed[2].split(", ")}
            elif line.startswith("rpc "):
                documented[re.split(r"[ (]", line)[1]] = found
                found = set()
            elif line.startswith("syntax"):
                documented[""] |= found
                found = set()
    return documented


DOCUMENTED = documented_errors()
