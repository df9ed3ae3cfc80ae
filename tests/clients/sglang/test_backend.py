"""The backend with a fake of SGLang's interface and a fake depot: no torch, and no wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvdepot.v1 import cache_pb2
from tests.fakes.depot import FakeDepot
from tests.test_imports import REPOSITORY

STUB = REPOSITORY / "tests" / "fakes" / "sglang_package"
SCRIPT = "import json, sys; from tests.clients.sglang.stub_engine import play; print(json.dumps(play(sys.argv[1])))"
PAGE = 8
HASHES = [bytes.fromhex(f"{page:064x}") for page in range(4)]


@pytest.fixture
def requests(tmp_path: Path) -> list[tuple[str, Any]]:
    """What the depot got while the engine played, after its results were checked."""
    depot = FakeDepot()
    depot.start(f"unix:{tmp_path}/depot.sock")
    depot.retrieved = cache_pb2.RetrieveResponse(retrieved_tokens=PAGE)
    path = os.pathsep.join((str(STUB), str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    played = subprocess.run(
        [sys.executable, "-c", SCRIPT, depot.address],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    depot.stop()
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout) == {
        "stored": [True, True],
        "found": 2,
        "loaded": [True, False],  # the depot brought one of them
        "restored": [2, {"kv": 2, "swa": 2}, [2]],
        "unknown pool": 0,
        "one": True,
        "by value": [None, [None] * 4, False, False],
        "stats": None,
        "cleared": True,
        "after the end": [0, [False]],
    }
    return list(depot.requests)


def test_sglangs_calls_become_calls_of_the_contract(requests: list[tuple[str, Any]]) -> None:
    by_rpc: dict[str, list[Any]] = {}
    for rpc, request in requests:
        by_rpc.setdefault(rpc, []).append(request)
    attached = {each.instance_id: each for each in by_rpc["AttachInstance"]}
    assert set(attached) == {"engine", "engine-swa"}
    assert {(each.model_revision, each.block_hash_seed, each.chunk_size) for each in attached.values()} == {
        ("1", "sglang sha256", PAGE)
    }
    (stored,), (loaded,) = by_rpc["Store"], by_rpc["Retrieve"]
    assert list(stored.prefix.block_hashes) == HASHES[:2]
    assert (stored.prefix.hash_block_size, stored.prefix.cache_salt) == (PAGE, "")
    assert [list(table.block_ids) for table in stored.block_tables] == [[1, 4]]
    assert [list(table.block_ids) for table in loaded.block_tables] == [[5, 0]]
    assert loaded.accept_partial
    asked = [(each.prefix.cache_salt, list(each.prefix.block_hashes)) for each in by_rpc["Lookup"]]
    assert ("", HASHES) in asked
    assert ("swa", HASHES[1::-1]) in asked  # the window before the end of what the KV has, from its end
    assert {each.model_name for each in by_rpc["ClearCache"]} == {attached["engine"].model_name}
