"""The steps of "Upgrade without loss": each command of the page runs, and the chunks are there after it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.l1.format import Layout
from tests.e2e.restarts import REPOSITORY, DepotProcess, depot_folder, engines, found_tokens, length_of, store

PAGE = (REPOSITORY / "docs/operations.md").read_text().partition("## Upgrade without loss")[2].partition("\n## ")[0]


def command(start: str) -> list[str]:
    """Return the words of the only command of the page that begins so, without the name of the program."""
    [line] = [line for line in re.findall(r"^kvdepot .+$", PAGE, re.MULTILINE) if line.startswith(start)]
    return shlex.split(line)[1:]


def depot_of(folder: Path, words: list[str]) -> DepotProcess:
    """Return a depot with the flags of a command of the page, but in a folder of its own, and small."""
    assert words.pop(0) == "serve"
    flags = dict(zip(words[::2], words[1::2], strict=True))
    flags |= {"--l1-size": "1MiB"}
    if "--l1-file" in flags:
        flags["--l1-file"] = str(folder / "l1")
    flags.pop("--listen", None)  # `DepotProcess` gives the address
    return DepotProcess(folder, *(word for flag in flags.items() for word in flag), in_file=False)


def l1(*words: str) -> str:
    """Return what a command of `kvdepot l1` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "kvdepot", "l1", *words],
        cwd=REPOSITORY,
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_an_upgrade_with_a_named_file_loses_no_chunk_and_the_file_can_be_wiped() -> None:
    with depot_folder() as folder:
        depot = depot_of(folder, command("kvdepot serve --l1-file"))
        await depot.start()
        try:
            assert depot.file.stat().st_mode & 0o777 == 0o600
            assert depot.file.stat().st_blocks * 512 == Layout(1 << 20).total_bytes
            async with engines(depot.address) as [engine]:
                await store(engine, 1)
            await depot.end(signal.SIGTERM)
            await depot.start()
            async with engines(depot.address) as [engine]:
                assert await found_tokens(engine, 1) == length_of(1)
            assert f"num_adopted_chunks={length_of(1) // 16}" in depot.log()
            with pytest.raises(AssertionError, match="another process uses it, the one of id"):
                second = DepotProcess(folder, *depot.flags, in_file=False)
                second.address += "2"
                await second.start()
        finally:
            await depot.end(signal.SIGTERM)
        assert json.loads(l1("show", str(depot.file), "--json"))["num_chunks"] == length_of(1) // 16
        assert "wiped and removed" in l1("wipe", str(depot.file), "--yes")
        assert not depot.file.exists()


async def test_a_takeover_by_the_command_of_the_page_loses_no_chunk() -> None:
    words = command("kvdepot serve --takeover")
    words.remove("--takeover")
    assert words[1] == "--listen"
    assert words[2].startswith("unix:")
    with depot_folder() as folder:
        old, new = depot_of(folder, list(words)), depot_of(folder, list(words))
        try:
            await old.start()
            async with engines(old.address) as [engine]:
                await store(engine, 1)
            await new.start("--takeover")
            assert await old.ended() == 0
            async with engines(new.address) as [engine]:
                assert await found_tokens(engine, 1) == length_of(1)
        finally:
            await old.end()
            await new.end()


def test_the_table_of_ways_links_to_each_way() -> None:
    linked = re.findall(r"^\| .*?\]\(#([a-z-]+)\)", PAGE, re.MULTILINE)
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^### (.+)$", PAGE, re.MULTILINE)]
    assert linked == headings
    assert len(linked) == 3
