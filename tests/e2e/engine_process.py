"""An engine in a process of its own, to be killed: holds a lease, and stores one long prompt after the other.

python -m tests.e2e.engine_process ADDRESS name|fd
"""

from __future__ import annotations

import itertools
import sys
from typing import Literal

import numpy as np

from kvdepot import DepotClient
from tests.e2e.engines import SLOW, SLOW_TOKENS, prompt
from tests.fakes.paged import SharedPagedBuffer, random_kv


def main(address: str, by: Literal["name", "fd"]) -> None:
    buffer = SharedPagedBuffer(SLOW, by=by)
    tables = [np.random.default_rng(1).permutation(SLOW_TOKENS) for _ in SLOW]
    with (
        DepotClient(address) as client,
        client.attach(
            instance_id="victim", model_name="model", groups=buffer.described(), regions=buffer.shared.regions
        ) as attachment,
    ):
        buffer.write(tables, random_kv(SLOW, 1024, seed=0))
        attachment.store("session", prompt(1024, seed=0), [table[:1024] for table in tables])
        assert attachment.lookup("session", prompt(1024, seed=0)).HasField("lease")
        for seed in itertools.count(1):
            buffer.write(tables, random_kv(SLOW, SLOW_TOKENS, seed))
            attachment.store("session", prompt(SLOW_TOKENS, seed), tables)


if __name__ == "__main__":
    main(sys.argv[1], "fd" if sys.argv[2] == "fd" else "name")
