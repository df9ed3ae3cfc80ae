"""The image's steps in plain folders: the result serves, stores and retrieves, writes nowhere else, and drains."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.authority import Authority
from tests.helm.conftest import Install, Manifest
from tests.image.without_docker import Builder, Stage

REPOSITORY = Path(__file__).parents[3]
WRITABLE = ("run/kvdepot", "var/cache/kvdepot", "tmp")
START_SECONDS = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cpu() -> Iterator[Stage]:
    """The target `cpu`, built."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler, which the Dockerfile installs")
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:  # a short path, for the socket
        stage = Builder(REPOSITORY / "Dockerfile", REPOSITORY, Path(folder)).stage("cpu")
        yield stage


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Container:
    """A process as a container of the image would run it, its ports exchanged for free ones."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ports = {port: free_port() for port in stage.ports}
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process that was started."""
        assert self._process is not None
        return self._process

    def start(self, arguments: Sequence[str]) -> None:
        """Run the entry point with these arguments, and wait until it is healthy as Docker does: by asking."""
        words = [*self.stage.entrypoint, *map(self.here, arguments)]
        self._process = subprocess.Popen(
            words, cwd=self.stage.folder, env=self.environment(), stderr=subprocess.PIPE, text=True
        )
        give_up_at = time.monotonic() + START_SECONDS
        while (asked := self.exec(*self.stage.healthcheck)).returncode:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < give_up_at, asked.stderr
            time.sleep(0.2)

    def here(self, text: str) -> str:
        """Return a text with the image's paths and ports as they are here."""
        return self.stage.placed(self._with_free_ports(text))

    def environment(self) -> dict[str, str]:
        """Return the image's variables as they are here."""
        return {name: self._with_free_ports(value) for name, value in self.stage.environment().items()}

    def _with_free_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return subprocess.run(
            [self.here(word) for word in words],
            cwd=self.stage.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def stop(self) -> tuple[int, str]:
        """Stop as Docker does; return the exit code and the log."""
        self.process.send_signal(signal.SIGTERM)
        _, logged = self.process.communicate(timeout=60)
        return self.process.returncode, logged


@pytest.fixture
def container(cpu: Stage) -> Iterator[Container]:
    """One that is not started yet; killed when the test ends."""
    container = Container(cpu)
    yield container
    container.process.kill()
    container.process.communicate()


def test_it_serves_stores_and_retrieves_and_drains(cpu: Stage, container: Container) -> None:
    before = cpu.files()
    container.start([*cpu.command, "--l1-size", "64MiB"])
    for address in ("unix:/run/kvdepot/kvdepot.sock", "127.0.0.1:50051"):
        tried = container.exec(*cpu.entrypoint, "selftest", "--address", address)
        assert tried.returncode == 0, tried.stderr
    code, logged = container.stop()
    assert code == 0, logged
    assert "NumPy copies" not in logged, "the compiled part is not there"
    changed = cpu.files().items() ^ before.items()
    assert not {path for path, _ in changed if not str(path).startswith(WRITABLE)}


def mount(pod: Manifest, container: Container, contents: dict[str, dict[str, str]]) -> None:
    """Write the files of a pod's volumes, by ConfigMap or Secret, to the paths where its container mounts them."""
    (spec,) = pod["containers"]
    sources = {volume["name"]: volume.get("configMap") or volume.get("secret") for volume in pod["volumes"]}
    for mounted in spec["volumeMounts"]:
        source = sources[mounted["name"]]
        if source is not None:
            files = contents[source.get("secretName") or source["name"]]
            for file in source.get("items") or [{"key": key, "path": key} for key in files]:
                path = Path(container.here(f"{mounted['mountPath']}/{file['path']}"))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(container.here(files[file["key"]]))


SHOWN = {
    "tls": {"secretName": "depot", "clientCASecretName": "authority"},
    "tenants": {"secretName": "tenants"},
    "test": {"tokenSecretName": "token", "clientCertSecretName": "client"},
}


@pytest.mark.parametrize("values", [{}, SHOWN], ids=["plain", "TLS, certificates of clients and tenants"])
def test_the_charts_pods_run_in_it(cpu: Stage, container: Container, install: Install, values: Manifest) -> None:
    release = install({**values, "settings": {"l1_size": "64MiB"}})
    authority = Authority()
    ca, depot, client = authority.pem.decode(), authority.issue(), authority.issue("engine")
    token = hashlib.sha256(b"secret").hexdigest()
    contents = {
        "kv-kvdepot": {"settings.yaml": release.config},
        "depot": {"tls.crt": depot.cert.decode(), "tls.key": depot.key.decode(), "ca.crt": ca},
        "authority": {"ca.crt": ca},
        "client": {"tls.crt": client.cert.decode(), "tls.key": client.key.decode()},
        "tenants": {"tenants.yaml": f"tenants: [{{name: red, tokens: [{{sha256: {token}}}]}}]"},
        "token": {"token": "secret"},
    }
    mount(release.pod, container, contents)
    container.start(release.container["args"])
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if values:  # without TLS the kubelet probes by gRPC
            asked = container.exec(*release.container[name]["exec"]["command"])
            assert asked.stdout == "SERVING\n", asked.stderr

    (test,) = release.tests
    mount(test["spec"], container, contents)
    arguments = [
        word.replace("kv-kvdepot.inference.svc", "127.0.0.1") for word in test["spec"]["containers"][0]["args"]
    ]
    tried = container.exec(*cpu.entrypoint, *arguments)
    assert tried.returncode == 0, tried.stderr
    refused = container.exec(*cpu.entrypoint, "selftest", "--address", "127.0.0.1:50051")
    assert bool(refused.returncode) == bool(values)
    assert container.stop()[0] == 0


def test_nothing_of_the_build_and_of_the_tests_is_in_it(cpu: Stage) -> None:
    assert {path.name for path in Path(cpu.placed("/opt")).iterdir()} == {"venv"}
    installed = {path.name.partition("-")[0].lower() for path in cpu.root.rglob("*.dist-info")}
    assert {"kvdepot", "grpcio"} <= installed
    assert not {"torch", "pytest", "hypothesis", "transformers"} & installed


def test_the_stubs_are_those_of_the_checkout(cpu: Stage) -> None:
    (inside,) = cpu.root.glob("opt/venv/lib/python3*/site-packages/kvdepot/v1/cache_pb2.py")
    assert inside.read_bytes() == (REPOSITORY / "clients/python/kvdepot/v1/cache_pb2.py").read_bytes()
