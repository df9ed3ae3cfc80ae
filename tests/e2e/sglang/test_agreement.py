"""The ranks of one engine are processes. They agree on an id by the store of torch's process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import REPOSITORY

pytest.importorskip("torch")

RANK = """
import sys
import torch.distributed as dist
from kvdepot.sglang.engine_facts import agreed_id

assert agreed_id() is None  # before there is a group
file, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
print(agreed_id(), agreed_id())
dist.barrier()
dist.destroy_process_group()
"""


def engine(store: Path) -> list[str]:
    """Start both ranks of an engine, and return what each of them said."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(store), str(rank)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [word for output, _ in said for word in output.split()]


def test_ranks_agree_on_an_id_that_no_other_engine_has(tmp_path: Path) -> None:
    one, two = engine(tmp_path / "one"), engine(tmp_path / "two")
    assert len(one) == len(two) == 4
    assert len(set(one)) == len(set(two)) == 1
    assert one[0] != two[0]
