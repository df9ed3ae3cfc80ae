"""Memory that messages leave behind is used again, not mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvdepot import AsyncDepotClient, KvShape
from kvdepot.cli.processes import server_process
from kvdepot.layout import layouts
from tests.e2e.engines import listening_pid

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc's heap is left as it is")

SCRIPT = """
import resource
from service.process.heap import keep_freed_memory

keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def messages():
    held = [bytes([number]) * (1 << 20) for number in range(8)]  # 2,048 pages

messages()
before = faults()
for _ in range(20):
    messages()
print(faults() - before)
"""


def minor_faults(pid: int) -> int:
    """Return the number of pages that a process got so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_messages_of_a_mebibyte_take_no_new_pages() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) < 2_048


async def test_a_depot_that_sends_a_prefix_again_takes_no_new_pages_for_it() -> None:
    shape = KvShape(num_layers=8, num_blocks=1, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")
    tokens = np.arange(512, dtype=np.uint32)  # 16 MiB: 4,096 pages
    with server_process("--l1-size", "64MiB", "--log-level", "error") as address:
        async with (
            AsyncDepotClient(address) as client,
            await client.attach(
                instance_id="e", model_name="m", groups=[layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(shape)]
            ) as attachment,
        ):
            data = bytearray(attachment.chunk_bytes * 2)
            await attachment.store_inline("s", tokens, data)
            lease = (await attachment.lookup("s", tokens)).lease
            faults = []
            for _ in range(6):
                await attachment.retrieve_inline_into("s", lease, data)
                faults.append(minor_faults(listening_pid(address)))
    assert min(np.diff(faults)) < 1_000
