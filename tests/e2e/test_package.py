"""The package that pip installs, tried where nothing of the checkout can be found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
INSTALL_SECONDS = 300

ENGINE = """
import sys
import numpy as np
from kvdepot import DepotClient, KvShape, SharedBuffer, layouts

shape = KvShape(num_layers=2, num_blocks=64, block_size=16, num_heads=2, head_size=8, dtype="float32")
layout = layouts.NB_NL_TWO_BS_NH_HS
tokens = list(range(512))
with SharedBuffer.create(layout.size_bytes(shape)) as buffer, DepotClient(sys.argv[1]) as depot, depot.attach(
    instance_id="engine", model_name="model", groups=[layout.from_shape(shape)], regions=[buffer.region]
) as attachment:
    kv = buffer.view(np.float32, (64, layout.size_bytes(shape) // 64 // 4))
    kv[:32] = np.random.default_rng(0).random(kv[:32].shape)
    attachment.store("a", tokens, [range(32)])
    found = attachment.lookup("b", tokens)
    attachment.retrieve("b", found.lease, [range(32, 64)])
    print(found.matched_tokens, np.array_equal(kv[:32], kv[32:]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What `hatchling build` makes of the checkout."""

    wheel: Path
    archive: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=REPOSITORY, check=True)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel=wheel, archive=archive)


@dataclass(frozen=True, slots=True)
class Place:
    """An environment of its own, and a folder in which a user of it works."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def pip(self, *arguments: str) -> None:
        """Install packages. Skip the test where the index can't be reached."""
        words = [str(self.folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        constraints = ("--constraint", str(REPOSITORY / "constraints.txt"))
        ended = subprocess.run(
            [*words, *constraints, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS,
        )
        if "Failed to establish a new connection" in ended.stderr or "Network is unreachable" in ended.stderr:
            pytest.skip("the package index can't be reached")
        assert ended.returncode == 0, ended.stderr

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the work folder, with hardly a variable."""
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=self.work,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a user who has just logged in."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.work), "COLUMNS": "100"}

    @contextmanager
    def depot(self) -> Iterator[str]:
        """Run `kvdepot serve` and yield its address; it ends with 0."""
        address = f"unix:{self.work}/kvdepot.sock"
        flags = ("--listen", address, "--l1-size", "16MiB", "--prometheus-port", "0")
        words = [str(self.folder / "bin" / "kvdepot"), "serve", *flags]
        with subprocess.Popen(words, cwd=self.work, env=self.variables, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert address in process.stdout.readline()
                yield address
            finally:
                process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def client_only(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An environment with `pip install kvdepot`, in a folder that has modules of the server's names."""
    place = Place(tmp_path_factory.mktemp("p"))
    subprocess.run([sys.executable, "-m", "venv", str(place.folder)], check=True)
    place.work.mkdir()
    for name in ("service", "kernels", "telemetry", "examples"):
        (place.work / f"{name}.py").write_text("OF_THE_USER = True\n")
    place.pip(str(built.wheel))
    return place


@pytest.fixture(scope="module")
def with_server(client_only: Place, built: Built) -> Place:
    """The same with `pip install 'kvdepot[server]'`."""
    client_only.pip(f"{built.wheel}[server]")
    return client_only


def test_the_source_archive_makes_the_same_wheel(built: Built, tmp_path: Path) -> None:
    subprocess.run(["tar", "xzf", str(built.archive), "-C", str(tmp_path)], check=True)
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=source, check=True)
    assert (tmp_path / "dist" / built.wheel.name).read_bytes() == built.wheel.read_bytes()


def test_the_wheel_brings_one_name_to_import_and_one_command(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "kvdepot",
        built.wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    (commands,) = [name for name in names if name.endswith("entry_points.txt")]
    assert zipfile.ZipFile(built.wheel).read(commands).decode().split() == [
        *("[console_scripts]", "kvdepot", "=", "kvdepot.cli.app:app"),
    ]


def test_the_client_alone_is_light_and_says_what_the_server_needs(client_only: Place) -> None:
    listed = client_only.run("python", "-m", "pip", "list", "--format", "json")
    installed = {each["name"] for each in json.loads(listed.stdout)}
    assert not installed & {"uvloop", "blake3", "opentelemetry-sdk", "cryptography", "starlette"}
    told = client_only.run("kvdepot", "--version")
    assert (told.stdout, told.stderr, told.returncode) == ("kvdepot 0.1.0\n", "", 0)
    refused = client_only.run("kvdepot", "serve")
    assert refused.returncode == 1
    assert "pip install 'kvdepot[server]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_engine_never_imports_the_server_by_accident(client_only: Place) -> None:
    """Neither where it has modules of these names, nor where it has none."""
    script = "import kvdepot, kernels; from kvdepot.cli.app import app; print(kernels.OF_THE_USER)"
    assert client_only.run("python", "-c", script).stdout == "True\n"
    absent = client_only.run("python", "-P", "-c", "import kvdepot, kernels")
    assert "No module named 'kernels'" in absent.stderr


def test_the_server_runs_from_the_wheel(with_server: Place) -> None:
    with with_server.depot() as address:
        status = with_server.run("kvdepot", "status", "--address", address, "--json")
        assert json.loads(status.stdout)["status"]["version"] == "0.1.0"
        tested = with_server.run("python", "-m", "kvdepot", "selftest", "--address", address)
        assert tested.returncode == 0, tested.stderr
        engine = with_server.run("python", "-c", ENGINE, address)
        assert (engine.stdout, engine.stderr) == ("512 True\n", "")
        sessions = with_server.run("kvdepot", "sessions", "--address", address)
        assert "engine" in sessions.stdout


def test_doctor_and_help_work_from_the_wheel(with_server: Place) -> None:
    examined = with_server.run("kvdepot", "doctor", "--l1-size", "16MiB", "--json")
    assert json.loads(examined.stdout)["findings"]
    assert " serve " in with_server.run("kvdepot", "--help").stdout


def test_the_demo_runs_from_the_wheel(with_server: Place) -> None:
    played = with_server.run("kvdepot", "demo", "--size", "small")
    assert (played.returncode, played.stderr) == (0, "")
    assert "tokens with and without the depot" in played.stdout
