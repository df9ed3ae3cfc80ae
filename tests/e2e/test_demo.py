"""The demo answers the same with and without the depot, notices when it does not, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from examples.demo import corpus, stage
from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.play import Cast
from examples.demo.text import QUESTIONS
from kvdepot import DepotClient
from kvdepot.cli.app import app
from kvdepot.cli.processes import ChildFailed, child, server_process
from tests.fakes.waiting import wait_until

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
SMALL = ("-m", "examples.demo", "--size", "small")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def test_two_engines_with_different_layouts_answer_the_same_through_the_depot() -> None:
    result = CliRunner().invoke(app, ["demo", "--size", "small"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    headline = next(number for number, line in enumerate(lines) if line.startswith("Engine B answered "))
    steps, end = lines[: headline - 1], lines[headline:]
    assert [line.partition(":")[0] for line in steps] == [
        "a depot starts",
        "engine A starts",
        "engine A has computed 1,086 tokens, and stored 1,024",
        "engine B starts",
        "engine B finds 1,024 of 1,103 tokens, and computes the rest",
        "engine B without the depot computes 1,103 of 1,103 tokens",
    ]
    assert re.fullmatch(r"Engine B answered [\d.]+× sooner: 0\.\d\d s instead of \d\.\d+ s\.", end[0])
    rows = {line[:19].strip(): line[19:].rstrip() for line in end if line[:19].strip()}
    assert rows["prompt"] == "1,103 tokens, 1,024 of them matched in the depot"
    assert rows["retrieved"].startswith(f"{rows['stored'].split()[0]} MB by engine B in ")
    assert rows["differences"] == "at most 0 in the retrieved KV, 0 in the logits"
    assert len(rows["without the depot"]) > len(rows["with the depot"]) > 0
    answer = dict(corpus.questions())[QUESTIONS["b"]]
    assert answer in " ".join(line[19:].strip() for line in end)  # the shipped model knows it by heart
    assert max(map(len, end)) <= 80
    assert not any("Enter" in line for line in end)  # no terminal: nobody waits


def test_one_damaged_block_at_the_begin_of_the_prompt_is_noticed_and_exits_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cast = Cast(
        decoder=DecoderName.NUMPY, size=DemoSize.SMALL, device=DemoDevice.CPU, module="tests.fakes.damaged_demo"
    )
    with pytest.raises(typer.Exit) as raised:
        stage.perform(cast)
    assert raised.value.exit_code == 1
    printed = capsys.readouterr().out
    assert "The depot returned KV that engine B would not compute." in printed
    assert "sooner" not in printed


@contextmanager
def demo_in_terminal() -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """The demo in a terminal of 80 columns, and what it has written so far."""
    ours, its = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 65_536):
                written.append(piece)
        except OSError:
            pass  # the other side is closed

    environment = {**os.environ, "COLUMNS": "80", "LINES": "30", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kvdepot", "demo", "--size", "small"],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment,
    )
    os.close(its)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, written
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        os.close(ours)


def text_of(written: list[bytes]) -> str:
    return ESCAPES.sub("", b"".join(written).decode(errors="replace")).replace("\r", "")


def descendants(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(other for each in children for other in descendants(each))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_in_a_terminal_the_depot_runs_until_ctrl_c_and_leaves_no_process_behind() -> None:
    with demo_in_terminal() as (process, written):
        wait_until(lambda: "ends the depot" in text_of(written), within_seconds=60)
        printed = text_of(written)
        commands = re.findall(r"^  (\S.* --address \S+)$", printed, re.MULTILINE)
        assert [" ".join(command.split()[:-2]).rpartition("kvdepot")[2] for command in commands] == [
            " status",
            " sessions",
            " sessions show engine-b request-1",
        ]
        assert max(map(len, commands)) <= 78
        typed = [subprocess.run(command, shell=True, capture_output=True, text=True) for command in commands]
        assert [each.stderr for each in typed] == ["", "", ""]
        assert re.search(r"attached instances +1\b", typed[0].stdout)  # engine B
        assert "1,024 of 1,103" in typed[2].stdout

        started = descendants(process.pid)
        assert len(started) >= 2
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert not [pid for pid in started if is_running(pid)]
    end = printed[printed.rindex("Engine B answered") :]
    assert "The depot still runs. What to type next, in another terminal:" in end
    assert max(map(len, end.splitlines())) <= 80


def test_ctrl_c_in_the_middle_leaves_no_process_behind() -> None:
    with demo_in_terminal() as (process, written):
        wait_until(lambda: "engine A" in text_of(written), within_seconds=60)
        started = descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert len(started) >= 2
        assert not [pid for pid in started if is_running(pid)]
    assert "error: stopped" in text_of(written)
    assert "Traceback" not in text_of(written)


def test_without_transformers_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo", "--decoder", "transformers"], env={"COLUMNS": "160"})
    assert result.exit_code == 1
    needs = "--decoder transformers needs transformers"
    assert result.stderr == f"error: {needs}: run `make demo-transformers`, or pip install 'kvdepot[server,demo]'\n"


def test_cuda_needs_transformers() -> None:
    result = CliRunner().invoke(app, ["demo", "--device", "cuda"])
    assert (result.exit_code, result.stderr) == (2, "error: --device cuda needs --decoder transformers\n")


@pytest.mark.slow
@needs_transformers
def test_the_decoder_of_transformers_answers_the_same() -> None:
    arguments = ["demo", "--size", "small", "--decoder", "transformers"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "Llama of transformers on the CPU" in result.stdout
    assert "0 in the logits" in result.stdout


def test_missing_weights_are_named_in_one_line(tmp_path: Path) -> None:
    arguments = ("--address", "unix:/nowhere", "--engine", "a", "--weights", f"{tmp_path}/model.npz")
    with child("engine A", *SMALL, *arguments) as engine, pytest.raises(ChildFailed) as raised:
        list(engine.lines())
    why = f"{tmp_path}/model.npz: No such file or directory. Install kvdepot again, or train it: `make demo-model`"
    assert str(raised.value) == f"engine A ended with exit code 1\n{why}"


def test_an_engine_without_a_depot_fails_in_one_line(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/missing.sock"
    arguments = ("--address", address, "--engine", "a")
    with child("engine A", *SMALL, *arguments) as engine, pytest.raises(ChildFailed) as raised:
        list(engine.lines())
    assert f"{address}: UNAVAILABLE UNREACHABLE" in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.slow
@needs_transformers
def test_without_cuda_an_engine_for_cuda_fails_in_one_line() -> None:
    arguments = ("--decoder", "transformers", "--address", "unix:/nowhere", "--engine", "a", "--device", "cuda")
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with child("engine A", *SMALL, *arguments, variables=hidden) as engine, pytest.raises(ChildFailed) as raised:
        list(engine.lines())
    why = "--device cuda: torch finds no CUDA device that it can use"
    assert str(raised.value) == f"engine A ended with exit code 1\n{why}"


def test_an_engine_that_stays_is_attached_until_it_is_stopped(start_server_process: Callable[..., str]) -> None:
    address = start_server_process("--l1-size", "64MiB")
    arguments = ("--address", address, "--engine", "a", "--stay")
    with DepotClient(address) as client:
        with child("engine A", *SMALL, *arguments) as engine, engine.limit(60):
            lines = engine.lines()
            next(line for line in lines if '"answered"' in line)
            assert client.get_status().num_instances == 1
            os.kill(engine.pid, signal.SIGINT)
            with pytest.raises(ChildFailed) as raised:
                list(lines)
        wait_until(lambda: client.get_status().num_instances == 0, within_seconds=5)
    assert str(raised.value) == f"engine A ended with exit code {128 + signal.SIGINT}"


@pytest.mark.slow
def test_an_engine_that_stays_ends_with_its_depot_and_says_why() -> None:
    with ExitStack() as depot:
        address = depot.enter_context(server_process("--l1-size", "64MiB"))
        arguments = ("--engine", "a", "--stay", "--address", address)
        with child("engine A", *SMALL, *arguments) as engine, engine.limit(60):
            lines = engine.lines()
            next(line for line in lines if '"answered"' in line)
            depot.close()
            with pytest.raises(ChildFailed) as raised:
                list(lines)
    assert f"{address}: UNAVAILABLE DRAINING: the depot has shut down" in str(raised.value)
