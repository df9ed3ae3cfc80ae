"""The steps of a GPU session, by their value: correctness before speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_TESTS = ("-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", ".", "-m", "gpu", "-rfEs")
_KERNELS = ("--noconftest", "tests/kernels/cuda/test_block_transfer.py", "tests/kernels/cuda/test_block_sums.py")
_SHORT_KERNELS = (*_KERNELS, "-k", "short_runs or groups or worst or sums_of_their_own")


class Kind(StrEnum):
    """The kind of a step's results: facts about the machine, the outcome of tests, or figures."""

    FACTS = "facts"
    TESTS = "tests"
    FIGURES = "figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A Python process of its own, which is killed after ``limit_seconds``.

    ``sanitizer`` names a tool of compute-sanitizer that the process runs under. Where pytest-timeout is installed, a
    test with what it sets up has ``test_seconds``; there is no limit for one if it is 0.
    """

    name: str
    what: str
    kind: Kind
    limit_seconds: float
    arguments: Sequence[str]
    sanitizer: str = ""
    test_seconds: float = 0.0


def _tests(
    name: str, what: str, limit_seconds: float, *arguments: str, sanitizer: str = "", test_seconds: float = 40.0
) -> Step:
    return Step(
        name=name,
        what=what,
        kind=Kind.TESTS,
        limit_seconds=limit_seconds,
        arguments=(*_TESTS, *arguments),
        sanitizer=sanitizer,
        test_seconds=0.0 if sanitizer else test_seconds,  # a sanitizer makes tests slow
    )


def _figures(name: str, what: str, limit_seconds: float, *measurements: str) -> Step:
    arguments = ("-m", "benchmarks.gpu", *(measurements or (name,)))
    return Step(name=name, what=what, kind=Kind.FIGURES, limit_seconds=limit_seconds, arguments=arguments)


STEPS: tuple[Step, ...] = (
    Step(
        name="machine",
        what="the card, the driver, the versions",
        kind=Kind.FACTS,
        limit_seconds=45,
        arguments=("-m", "tools.gpu_session.machine"),
    ),
    _tests("kernels", "the kernels alone, against the reference", 75, *_KERNELS),
    _tests(
        "blocks",
        "the backend over CUDA IPC: every layout, events, engines that are killed",
        120,
        "tests/gpu",
        "--ignore=tests/gpu/test_service.py",
    ),
    # The first test starts a dozen processes. Most of them import torch.
    _tests("service", "the real server with real engines", 150, "tests/gpu/test_service.py", test_seconds=100),
    _tests("memcheck", "the kernels under memcheck", 90, *_SHORT_KERNELS, sanitizer="memcheck"),
    _figures("runs", "transfers and the link, runs of 4 to 64 KiB", 75),
    _figures("small", "requests of one chunk", 45),
    _figures("sums", "kernels and transfers with and without checksums", 60),
    _figures("slowdown", "a matrix product during transfers", 60),
    _figures("long", "16 GiB of L1, requests of 131,072 tokens", 75),
    _figures("ctas", "CTAs from 4 to 132, with a matrix product", 90),
    _figures("events", "what timing events cost, and whether unmapping waits", 60, "unmapping", "events"),
    _tests("racecheck", "the kernels under racecheck", 60, *_SHORT_KERNELS, sanitizer="racecheck"),
)
