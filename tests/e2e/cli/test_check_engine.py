"""`check-engine` says of an engine that it works, or in a sentence what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvdepot import DepotClient
from kvdepot.cli.app import app
from kvdepot.cli.check_engine import ExitCode
from kvdepot.cli.engine_check.exercise import attached
from kvdepot.cli.engine_check.rank import Wrong, ranks_of
from kvdepot.cli.processes import server_process
from tests.fakes import engines_under_test as engines

FACTORIES = "tests.fakes.engines_under_test"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A depot of the user, with chunks of 8 tokens."""
    with server_process("--chunk-size", "8", "--l1-size", "16MiB") as address:
        yield address


def check(factory: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["check-engine", f"{FACTORIES}:{factory}", *arguments])


def last_problem(result: Result) -> tuple[str, str]:
    """Return the step that failed, and its sentence."""
    step, _, problem = result.stdout[result.stdout.index("WRONG") :].partition("\n")
    return step.removeprefix("WRONG").strip(), problem.strip()


def test_right_engine_of_two_ranks_and_three_groups_works() -> None:
    result = check("two_ranks")
    assert result.exit_code == ExitCode.WORKS, result.output
    assert "WRONG" not in result.stdout
    for step in (
        "the declared layout is where the engine's arrays are",
        "it stores and retrieves 1 token",
        "what is stored is canonical",
        "a retrieve leaves the blocks that it skips",
        "it attaches again after it was killed",
        "it retrieves what it stored before",
    ):
        assert f"ok     {step}\n" in result.stdout
    assert result.stdout.endswith("the engine works\n")


def test_depot_of_the_user_is_tried_and_left_as_it_was(address: str) -> None:
    result = check("prints", "--address", address, "--json")
    assert result.exit_code == ExitCode.WORKS, result.output
    report = json.loads(result.stdout)
    assert report["works"]
    assert {step["ok"] for step in report["steps"]} == {True}
    with DepotClient(address) as client:
        status = client.get_status()
        assert (status.num_instances, status.num_sessions, status.num_leases) == (0, 0, 0)
        assert sum(tier.num_chunks for tier in status.tiers) == 0


def test_chunks_that_are_larger_than_the_engine_are_named(address: str) -> None:
    step, problem = last_problem(check("too_small", "--address", address))
    assert step == "it attaches"
    assert problem.endswith("a chunk of this depot has 8: a factory for it makes blocks for 16 tokens or more")


@pytest.mark.parametrize(
    ("factory", "step", "problem"),
    [
        (
            "swapped",
            "the declared layout is where the engine's arrays are",
            "groups[0], layer 0, K: the",
        ),
        ("too_small", "the engine has enough blocks", "it has blocks for two prompts of 0 tokens, and a chunk has at"),
        ("raises", "the factory returns an engine", "the factory raised ValueError: the weights are missing ("),
        ("dies", "the factory returns an engine", "the engine ended with exit code -11"),
        ("hangs", "the factory returns an engine", "the engine took longer than 2 s and was killed"),
        ("of_two_revisions", "it attaches", "FAILED_PRECONDITION INSTANCE_MISMATCH: instance "),
        (
            "revision_is_a_number",
            "the factory returns an engine",
            "INVALID_ARGUMENT INVALID_REQUEST: model_revision: is 7, not a string",
        ),
    ],
)
def test_wrong_engine_is_told_in_a_sentence(factory: str, step: str, problem: str) -> None:
    result = check(factory, *(["--time-limit-seconds", "2"] if factory == "hangs" else []))
    assert result.exit_code == ExitCode.WRONG, result.output
    found_step, found_problem = last_problem(result)
    assert found_step == step
    assert found_problem.startswith(problem)
    assert "Traceback" not in result.output
    assert "the engine works" not in result.stdout


def test_revision_and_seed_of_the_factory_are_attached_with(address: str) -> None:
    (rank,) = ranks_of(replace(engines.right(), model_revision="r1", block_hash_seed="sha256 seed=0"))
    with DepotClient(address) as client, attached([rank], client, "named", "run"):
        (instance,) = client.list_instances().instances
    assert (instance.model_revision, instance.block_hash_seed) == ("r1", "sha256 seed=0")


def test_module_that_is_not_there_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["check-engine", "broken:engine"])
    assert result.exit_code == ExitCode.WRONG
    assert (
        "the module broken can't be imported: ModuleNotFoundError: No module named 'nothing_of_this_name' "
        f"({tmp_path}/broken.py, line 1)" in result.stdout
    )


@pytest.mark.parametrize("target", ["engine", "engine.py:factory", "engine:", ":factory", "folder/engine:factory"])
def test_target_that_is_no_function_is_bad_usage(target: str) -> None:
    result = CliRunner().invoke(app, ["check-engine", target])
    assert result.exit_code == ExitCode.NOT_TRIED
    assert "is not MODULE:FACTORY, as in my_engine:factory" in result.stderr


def test_depot_that_is_not_there_is_no_fault_of_the_engine(tmp_path: Path) -> None:
    result = check("right", "--address", f"unix:{tmp_path}/absent.sock")
    assert result.exit_code == ExitCode.NOT_TRIED
    assert "there is no socket" in result.stderr.splitlines()[0]


def test_bytes_that_come_back_wrong_are_found(address: str) -> None:
    """The steps that call a depot find by themselves that an engine's arrays are not what it attached."""
    (rank,) = ranks_of(engines.right())
    (planes,) = rank.planes
    keys_and_values: Any = [[replace(plane, array=planes[number ^ 1].array) for number, plane in enumerate(planes)]]
    wrong = replace(rank, planes=keys_and_values)
    with ExitStack() as stack:
        client = stack.enter_context(DepotClient(address))
        engine = stack.enter_context(attached([wrong], client, "wrong", "run"))
        with pytest.raises(Wrong, match=r"bytes are wrong, the first is groups\[0\], layer 0, K"):
            engine.store_and_retrieve(16)
        with pytest.raises(Wrong, match="canonical bytes of chunk 0 are not those"):
            engine.canonical(16)
