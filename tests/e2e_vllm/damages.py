"""Cases of depots with damaged chunks. vLLM keeps what comes before the damage, and computes the rest."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.l1.file_use import read_start
from service.l1.format import RECORD_BYTES, Header, Layout
from service.l1.inspection import open_for_reading
from service.l1.records import Record, RecordTable
from tests.e2e_vllm.cases import ALONE, CHUNK_SIZE, Proof, whole_chunks
from tests.e2e_vllm.engines import COUNT_VARIABLE
from tests.e2e_vllm.restarts import flags

PROMPT = ALONE[0]
NUM_GOOD = 2  # chunks before the damaged one
NUM_TOKENS = 16


async def partial_loads(proof: Proof) -> str:
    """One chunk of a prompt is damaged."""
    return await _partial_loads(proof)


async def partial_loads_of_a_rank(proof: Proof) -> str:
    """One chunk of one of two workers is damaged. What both have counts."""
    return await _partial_loads(proof, cores="0|1", tensor_parallel_size=2)


async def _partial_loads(proof: Proof, **more: Any) -> str:
    good_tokens = NUM_GOOD * CHUNK_SIZE
    with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/dev/shm") as folder, _counted(proof) as counts:
        file = Path(folder) / "l1"
        async with flags(proof, "--l1-file", str(file)):
            await proof.server.end()
            await proof.server.start()
            try:
                async with proof.engine("counting", "CountingConnector", "tests.e2e_vllm.counting", **more) as engine:
                    answers = [await engine.generate(PROMPT, NUM_TOKENS)]
                    await proof.until_quiet()
                    computed = []
                    for damages in (True, False):  # the second time, the depot has the chunks that were stored again
                        await proof.forget_locally(engine)
                        if damages:
                            damage(file, NUM_GOOD)
                        before = counts()
                        answers.append(await engine.generate(PROMPT, NUM_TOKENS))
                        await proof.until_quiet()
                        computed.append(counts() - before - (NUM_TOKENS - 1))
            finally:
                await proof.server.end()
        await proof.server.start()
    assert computed == [len(PROMPT) - good_tokens, len(PROMPT) - whole_chunks(len(PROMPT))], computed
    same = proof.plain.check([PROMPT] * 3, answers)
    return f"chunk {NUM_GOOD} damaged: {computed[0]} of {len(PROMPT)} computed, then {computed[1]}; {same}"


@contextmanager
def _counted(proof: Proof) -> Iterator[Any]:
    """Let engines write down what they compute; the function returns how many tokens it was."""
    file = proof.folder / "counts.jsonl"
    file.write_text("")
    os.environ[COUNT_VARIABLE] = str(file)
    try:
        yield lambda: sum(sum(json.loads(line).values()) for line in file.read_text().splitlines())
    finally:
        del os.environ[COUNT_VARIABLE]


def damage(l1_file: Path, number: int) -> None:
    """Flip a bit of a chunk of the last rank, in the order in which its chunks were stored."""
    by_namespace: defaultdict[int, list[Record]] = defaultdict(list)
    fd = open_for_reading(l1_file)
    try:
        header = Header.unpack(read_start(fd))
        assert header is not None
        layout = Layout(header.l1_bytes)
        table = os.pread(fd, layout.num_records * RECORD_BYTES, layout.records_offset)
        for _, record, _ in RecordTable(memoryview(table), header.memory_id).scan():
            if record is not None:
                by_namespace[record.namespace_sum].append(record)
    finally:
        os.close(fd)
    records = sorted(max(by_namespace.items())[1], key=lambda record: record.generation)
    with l1_file.open("r+b") as file:
        file.seek(layout.slots_offset + records[number].offset_bytes + 1000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
