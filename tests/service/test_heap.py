"""Memory that messages leave behind is used again, not mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from service.heap import keep_freed_memory

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc's heap is left as it is")
def test_messages_of_a_mebibyte_take_no_new_pages() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) < 2_048
