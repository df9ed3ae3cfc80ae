"""The peer's processes: one command, one answer, and a clear word when one fails. No peer is needed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peer.processes import Driver, PeerFailed, Process
from benchmarks.peer.setups import STOCK, TUNED, Setup, Transport, Tuning

ENGINE = """
    import sys
    from benchmarks.peer import answering

    class Engine:
        def double(self, number):
            print("a library says something")
            return {"doubled": 2 * number}

        def fail(self):
            print("what led to it", file=sys.stderr, flush=True)
            raise ValueError("there is no such block")

        def end(self):
            sys.exit("the server is gone")

        def hang(self):
            import time
            time.sleep(3600)

    answering.serve(Engine(), sys.stdin, answering.own_output())
"""


def start(code: str) -> Process:
    return Process("the engine", "-c", textwrap.dedent(code), variables={}, answers=True, python=Path(sys.executable))


@pytest.fixture
def process() -> Iterator[Process]:
    process = start(ENGINE)
    yield process
    process.end()


def test_each_command_has_its_answer_although_libraries_print(process: Process) -> None:
    driver = Driver(process)
    assert [driver.ask("double", number=number) for number in (1, 21)] == [{"doubled": 2}, {"doubled": 42}]


def test_a_command_that_fails_says_why_and_the_next_one_works(process: Process) -> None:
    driver = Driver(process)
    with pytest.raises(PeerFailed, match="the engine: ValueError: there is no such block\nwhat led to it"):
        driver.ask("fail")
    assert driver.ask("double", number=4) == {"doubled": 8}


def test_a_process_that_ends_is_reported_with_its_last_lines(process: Process) -> None:
    driver = Driver(process)
    with pytest.raises(PeerFailed, match=r"it ended.*\nthe server is gone"):
        driver.ask("end")


def test_a_process_that_says_nothing_is_killed(process: Process) -> None:
    process.write('{"do": "hang"}')
    with pytest.raises(PeerFailed, match=r"said nothing for 0\.5 s"):
        process.line(0.5)


def test_a_process_that_ends_before_it_listens_is_reported() -> None:
    process = start("import sys; sys.exit('no such flag')")
    try:
        with pytest.raises(PeerFailed, match="ended with exit code 1\nno such flag"):
            process.until_listening(1, 10.0)
    finally:
        process.end()


def test_rows_name_the_setup() -> None:
    assert str(Setup(transport=Transport.GRPC, tuning=TUNED)) == "LMCache over gRPC, tuned"
    assert str(Setup(transport=Transport.ZMQ, tuning=STOCK)) == "LMCache over ZMQ, stock"


@pytest.mark.parametrize("tuning", [STOCK, TUNED])
def test_the_peer_sends_no_usage_statistics(tuning: Tuning) -> None:
    assert Setup(transport=Transport.ZMQ, tuning=tuning).variables["DO_NOT_TRACK"] == "1"
