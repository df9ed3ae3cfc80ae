"""`doctor` on machines with one fault each, and on this machine."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kernels.cuda.probe import CudaProbe, probe_cuda
from kvdepot.cli.app import app
from service.doctor import addresses
from service.doctor.examine import CHECKS, examine
from service.doctor.facts import (
    AddressFacts,
    BindError,
    CertificateFacts,
    Facts,
    Holder,
    L1FileFacts,
    LeftOverFacts,
)
from service.doctor.findings import Finding, Status
from service.doctor.gather import cpu_quota
from service.l1.arena import HugePages
from service.settings import Settings
from tests.fakes.authority import Authority
from tests.fakes.healthy_machine import CONSOLE, DAY_SECONDS, GIB, HEALTHY, LISTEN, METRICS, SOCKET

LEFT_OVER = LeftOverFacts(path="/dev/shm/old", size_bytes=4 * GIB, num_chunks=1, seconds_since_store=3.5 * DAY_SECONDS)
NO_GPU = replace(
    HEALTHY.gpu,
    driver="",
    num_nodes=0,
    cuda=CudaProbe(cupy_error="No module named 'cupy'", devices_error="CuPy is missing"),
)


def settings(**given: Any) -> Settings:
    return Settings.model_construct(
        **{
            "l1_size": 64 * GIB,
            "listen": (LISTEN, "unix:/run/kvdepot/depot.sock"),
            "subscriber": ("mine:Mine",),
            "tenants": "/etc/kvdepot/tenants.yaml",
            "otlp_endpoint": "http://collector:4317",
            "tls_cert": "tls.crt",
            "kv_events": "tcp://*:5557",
            **given,
        }
    )


def memory(**changed: Any) -> Facts:
    return replace(HEALTHY, memory=replace(HEALTHY.memory, **changed))


def shared(**changed: Any) -> Facts:
    return replace(HEALTHY, shared_memory=replace(HEALTHY.shared_memory, **changed))


def l1_file(**changed: Any) -> Facts:
    return replace(HEALTHY, l1_file=L1FileFacts(path="/dev/shm/kvdepot/l1", exists=True, **changed))


def kv_events(error: str, *, is_in_use: bool = False) -> Facts:
    wrong = BindError(setting="kv_events_replay", address="tcp://*:58", error=error, is_in_use=is_in_use)
    return replace(HEALTHY, kv_events_bind_errors=(wrong,))


def process(**changed: Any) -> Facts:
    return replace(HEALTHY, process=replace(HEALTHY.process, **changed))


def gpu(**changed: Any) -> Facts:
    return replace(HEALTHY, gpu=replace(HEALTHY.gpu, **changed))


def cuda(**changed: Any) -> Facts:
    return gpu(cuda=replace(HEALTHY.gpu.cuda, **changed))


def listener(**changed: Any) -> Facts:
    return replace(HEALTHY, listeners=(replace(HEALTHY.listeners[0], **changed),))


def unix(**changed: Any) -> Facts:
    return replace(HEALTHY, listeners=(replace(HEALTHY.listeners[1], socket=replace(SOCKET, **changed)),))


def found(check: str, facts: Facts, **given: Any) -> Finding:
    """Return the finding of one check."""
    [finding] = [each for name, each in examine(facts, settings(**given)).items() if _kind(name) == check]
    return finding


def _kind(check: str) -> str:
    """Return the name of a check without an address."""
    return "listen on" if check.startswith("listen on ") else check


def test_a_healthy_machine_needs_no_fix() -> None:
    findings = examine(HEALTHY, settings())
    assert {each.status for each in findings.values()} == {Status.OK}
    assert [each.fix for each in findings.values() if each.fix] == []
    assert len(findings) == len(CHECKS) + len(HEALTHY.listeners)


BROKEN = [
    (
        "memory for L1",
        memory(available_bytes=63 * GIB, cgroup_limit_bytes=None),
        {},
        "failure",
        "63 GiB are",
        "l1_size",
    ),
    ("memory for L1", memory(cgroup_used_bytes=37 * GIB), {}, "failure", "the cgroup's 100 GiB", "64.5 GiB or more"),
    ("memory for L1", memory(cgroup_used_bytes=int(35.6 * GIB)), {}, "warning", "may kill the depot", "64.5 GiB"),
    ("huge pages", memory(huge_page_error=errno.EINVAL), {}, "warning", "makes no huge pages", "shmem_enabled is deny"),
    ("huge pages", memory(huge_page_error=errno.ENOMEM), {}, "warning", "Cannot allocate memory", "free memory"),
    ("huge pages", l1_file(has_reserved_pages=True), {}, "failure", "0 B of reserved pages are free", "nr_hugepages="),
    ("L1 file", l1_file(error="/l1: its folder does not exist"), {}, "failure", "its folder", "name another path"),
    ("L1 file", l1_file(used_by=77), {}, "failure", "/dev/shm/kvdepot/l1: the process 77 uses it", "end that process"),
    ("L1 file", l1_file(used_by=0), {}, "failure", "another process uses it", "end that process"),
    (
        "L1 file",
        l1_file(why_empty="its chunk_size is 16"),
        {},
        "warning",
        "starts empty, since its chunk",
        "change the",
    ),
    (
        "left-over L1 files",
        replace(HEALTHY, left_over_l1_files=(LEFT_OVER, replace(LEFT_OVER, path="/dev/shm/a b", owner=1000))),
        {},
        "warning",
        "2 L1 files with 8 GiB of memory that no process uses: /dev/shm/old (4 GiB, 1 chunk, last store 3 days ago); "
        "/dev/shm/a b (4 GiB, 1 chunk, last store 3 days ago, of the user 1000)",
        "kvdepot l1 wipe /dev/shm/old; kvdepot l1 wipe '/dev/shm/a b'",
    ),
    (
        "huge pages",
        memory(reserved_huge_page_bytes=GIB),
        {"l1_huge_pages": HugePages.RESERVED},
        "failure",
        "1 GiB of reserved pages are free",
        "vm.nr_hugepages=32865",
    ),
    ("populating L1", process(linux_version=(5, 10)), {}, "warning", "Linux 5.10", "5.14"),
    ("shared memory", shared(error="it is not there"), {}, "failure", "it is not there", "tmpfs"),
    ("shared memory", shared(size_bytes=64 << 20), {}, "warning", "64 MiB", "mount the node's /dev/shm"),
    ("memlock", memory(memlock_bytes=8 << 20), {}, "warning", "8 MiB may be locked", "ulimit -l"),
    ("CPUs", process(num_cpus=1.5), {"transfer_threads": 4}, "warning", "1.5, and transfer_threads is 4", "CPU limit"),
    ("open files", process(max_files=1024), {}, "warning", "1024 at most", "LimitNOFILE"),
    ("PID namespace", process(is_in_host_pid_namespace=False), {}, "warning", "CUDA IPC", "hostPID"),
    ("streaming copy", replace(HEALTHY, streaming_copy_error="no cc"), {}, "warning", "no cc", "C compiler"),
    (
        "GPU",
        gpu(num_nodes=0, cuda=replace(HEALTHY.gpu.cuda, devices=(), devices_error="none")),
        {},
        "warning",
        "570.10",
        "runtimeClassName",
    ),
    ("GPU", replace(cuda(devices=()), gpu=replace(cuda(devices=()).gpu, hidden_by="X")), {}, "warning", "X", "unset X"),
    ("GPU", cuda(devices=(), devices_error="error 999"), {}, "failure", "error 999", "nvidia-smi"),
    ("CuPy", gpu(cuda=CudaProbe(cupy_error="No module")), {}, "failure", "No module", "cuda12"),
    ("GPU driver", cuda(driver_version=0), {}, "failure", "libcuda", "NVIDIA_DRIVER_CAPABILITIES"),
    (
        "GPU driver",
        cuda(driver_version=11_080),
        {},
        "failure",
        "CUDA 11.8, and CuPy is for 12.9",
        "newer driver",
    ),
    ("NVRTC", cuda(nvrtc_version="", nvrtc_error="no libnvrtc"), {}, "failure", "no libnvrtc", "[ctk]"),
    ("kernel cache", gpu(cache_is_writable=False), {}, "failure", "/home/kvdepot/.cupy", "CUPY_CACHE_DIR"),
    (
        "TLS certificate",
        replace(HEALTHY, certificate=CertificateFacts(error="tls.key: No such file")),
        {},
        "failure",
        "tls.key: No such file",
        "tls_key",
    ),
    (
        "TLS certificate",
        replace(HEALTHY, certificate=CertificateFacts(error="", subject="CN=a", seconds_left=3.5 * DAY_SECONDS)),
        {},
        "warning",
        "CN=a: 3.5 days left",
        "renew",
    ),
    ("tenants", replace(HEALTHY, tenants_error="a: bad\nb: bad"), {}, "failure", "a: bad; b: bad", "tenants.yaml"),
    (
        "metrics",
        replace(HEALTHY, metrics=AddressFacts(address=METRICS, holder=Holder.OTHER)),
        {},
        "failure",
        f"another process has {METRICS}",
        "prometheus_port",
    ),
    (
        "metrics",
        replace(HEALTHY, metrics=AddressFacts(address=METRICS, holder=Holder.NONE, bind_error="Cannot assign")),
        {},
        "failure",
        "Cannot assign",
        "prometheus_host",
    ),
    (
        "console",
        replace(HEALTHY, console=AddressFacts(address=CONSOLE, holder=Holder.OTHER)),
        {},
        "failure",
        f"another process has {CONSOLE}",
        "console_port",
    ),
    (
        "console",
        replace(HEALTHY, console=AddressFacts(address=CONSOLE, holder=Holder.NONE, bind_error="Cannot assign")),
        {},
        "failure",
        "Cannot assign",
        "console_host",
    ),
    (
        "console",
        replace(HEALTHY, console=AddressFacts(address="0.0.0.0:9465", holder=Holder.NONE)),
        {"tenants": ""},
        "warning",
        "everybody who reaches it",
        "tenants",
    ),
    (
        "console",
        replace(HEALTHY, console=AddressFacts(address="0.0.0.0:9465", holder=Holder.NONE)),
        {"tls_cert": ""},
        "failure",
        "tokens could be read",
        "tls_cert",
    ),
    ("OTLP collector", replace(HEALTHY, collector_error="refused"), {}, "failure", "http://collector:4317", "4317"),
    ("subscribers", replace(HEALTHY, subscriber_errors=("no module mine",)), {}, "failure", "no module", "PYTHONPATH"),
    ("KV events", replace(HEALTHY, kv_events_module="zmq"), {}, "failure", "no module zmq", "kvdepot[kv-events]"),
    ("KV events", kv_events("Address already in use", is_in_use=True), {}, "failure", "another process", "vLLM"),
    ("KV events", kv_events("Permission denied"), {}, "failure", "Permission denied", "kv_events_replay"),
    ("listen on", listener(holder=Holder.OTHER), {}, "failure", "another process", "another address"),
    ("listen on", listener(bind_error="Permission denied"), {}, "failure", "Permission denied", "1023"),
    (
        "listen on",
        listener(address="0.0.0.0:50051"),
        {"tenants": ""},
        "warning",
        "every client that reaches it",
        "tls_client_ca",
    ),
    (
        "listen on",
        listener(address="0.0.0.0:50051"),
        {"tls_cert": ""},
        "failure",
        "no tenant can call",
        "tls_cert",
    ),
    (
        "listen on",
        listener(address="[::]:50051"),
        {"tls_cert": "", "tokens_over_plain_tcp": True},
        "warning",
        "in the clear",
        "tls_cert",
    ),
    ("CUDA handles", HEALTHY, {"listen": (LISTEN,)}, "warning", "engines on GPUs can't attach", "unix:/run"),
    ("listen on", unix(owner_error="does not know x"), {}, "failure", "does not know x", "numbers"),
    ("listen on", unix(path_bytes=108), {}, "failure", "108 bytes", "shorten"),
    ("listen on", unix(folder_mode=None), {}, "failure", "no folder /run/kvdepot", "mkdir"),
    ("listen on", unix(folder_is_writable=False), {}, "failure", "can't make a socket", "fsGroup"),
    ("listen on", unix(folder_mode=0o777), {}, "warning", "every user", "chmod o-w /run/kvdepot"),
]


@pytest.mark.parametrize(("check", "facts", "given", "status", "what", "fix"), BROKEN)
def test_a_broken_machine_is_reported_with_its_fix(
    check: str, facts: Facts, given: dict[str, Any], status: str, what: str, fix: str
) -> None:
    finding = found(check, facts, **given)
    assert (finding.status, what in finding.what, fix in finding.fix) == (status, True, True), finding


JUST_RIGHT = [
    ("memory for L1", memory(cgroup_used_bytes=int(35.5 * GIB)), {}),
    ("memory for L1", memory(available_bytes=64 * GIB, cgroup_limit_bytes=None), {}),
    ("populating L1", process(linux_version=(5, 14)), {}),
    ("memlock", memory(memlock_bytes=64 * GIB), {}),
    ("CPUs", process(num_cpus=4), {"transfer_threads": 4}),
    ("open files", process(max_files=1024 + 256), {}),
    ("listen on", unix(path_bytes=107), {}),
    ("listen on", listener(), {"tenants": ""}),
    ("listen on", listener(address="0.0.0.0:50051"), {}),
    ("listen on", listener(address="0.0.0.0:50051"), {"tenants": "", "tls_client_ca": "ca.crt"}),
    ("CUDA handles", HEALTHY, {"listen": (LISTEN,), "tls_client_ca": "ca.crt"}),
    ("CUDA handles", HEALTHY, {"listen": (LISTEN,), "cuda_over_tcp": True}),
]


@pytest.mark.parametrize(("check", "facts", "given"), JUST_RIGHT)
def test_just_enough_is_enough(check: str, facts: Facts, given: dict[str, Any]) -> None:
    assert found(check, facts, **given).status is Status.OK


def test_an_l1_that_leaves_no_memory_is_only_a_warning() -> None:
    assert found("memory for L1", memory(cgroup_used_bytes=36 * GIB)).status is Status.WARNING


def test_a_missing_cupy_is_reported_once() -> None:
    without = gpu(cuda=CudaProbe(cupy_error="No module", devices_error="CuPy is missing"))
    others = [found(check, without) for check in ("GPU driver", "NVRTC")]
    assert {(each.status, each.what) for each in others} == {(Status.NOT_APPLICABLE, "CuPy is missing")}


def test_each_check_can_find_a_fault() -> None:
    checks = set(map(_kind, examine(HEALTHY, settings())))
    assert checks - {check for check, *_ in BROKEN} == {"IPC namespace"}


def test_a_node_without_a_gpu_is_healthy() -> None:
    own_namespaces = replace(HEALTHY.process, is_in_host_pid_namespace=False, is_in_host_ipc_namespace=False)
    facts = replace(HEALTHY, gpu=NO_GPU, process=own_namespaces, certificate=None, metrics=None, console=None)
    facts = replace(facts, collector_error=None, tenants_error=None)
    findings = examine(facts, settings(l1_huge_pages=HugePages.NONE, subscriber=(), kv_events=""))
    assert {each.status for each in findings.values()} == {Status.OK, Status.NOT_APPLICABLE}
    assert {check for check, each in findings.items() if each.status is Status.NOT_APPLICABLE} == {
        *(
            "GPU",
            "CuPy",
            "GPU driver",
            "NVRTC",
            "kernel cache",
            "CUDA handles",
            "memlock",
            "PID namespace",
            "IPC namespace",
        ),
        *(
            "TLS certificate",
            "tenants",
            "metrics",
            "console",
            "OTLP collector",
            "subscribers",
            "KV events",
            "huge pages",
        ),
    }


def test_the_memory_of_a_running_depot_is_not_needed_twice() -> None:
    facts = listener(holder=Holder.DEPOT)
    facts = replace(facts, memory=replace(HEALTHY.memory, available_bytes=0, cgroup_used_bytes=100 * GIB))
    assert found("memory for L1", facts).status is Status.NOT_APPLICABLE
    assert found("huge pages", facts, l1_huge_pages=HugePages.RESERVED).status is Status.NOT_APPLICABLE
    assert found("listen on", facts).what == "a depot serves there"


def test_a_socket_in_a_sticky_folder_is_safe() -> None:
    assert found("listen on", unix(folder_mode=0o1777)).status is Status.OK


def test_what_the_file_of_l1_has_already_is_not_needed_twice() -> None:
    facts = replace(l1_file(allocated_bytes=60 * GIB), memory=memory(available_bytes=5 * GIB).memory)
    assert found("memory for L1", facts).what.startswith("4 GiB of 5 GiB")
    facts = replace(l1_file(allocated_bytes=65 * GIB, has_reserved_pages=True), memory=HEALTHY.memory)
    assert found("huge pages", facts).status is Status.OK


def test_a_port_of_kv_events_that_the_running_depot_has_is_no_fault() -> None:
    wrong = kv_events("Address already in use", is_in_use=True).kv_events_bind_errors
    facts = replace(listener(holder=Holder.DEPOT), kv_events_bind_errors=wrong)
    assert found("KV events", facts).status is Status.OK


def test_a_file_of_the_running_depot_is_no_fault() -> None:
    facts = replace(listener(holder=Holder.DEPOT), l1_file=l1_file(used_by=77).l1_file)
    assert found("L1 file", facts).what == "/dev/shm/kvdepot/l1: the running depot uses it"


def test_reserved_pages_are_counted() -> None:
    assert (
        found("huge pages", memory(reserved_huge_page_bytes=65 * GIB), l1_huge_pages=HugePages.RESERVED).status
        is Status.OK
    )


# Control groups


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_lowest_quota_counts_in_version_2(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/kubepods/pod1\n")
    group(tmp_path / "kubepods", cpu__max="max 100000\n")
    group(tmp_path / "kubepods/pod1", cpu__max="150000 100000\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 1.5


def test_quotas_of_version_1_count_where_their_controller_is(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("4:memory:/pod\n3:cpuset:/other\n2:cpu,cpuacct:/pod\n0::/\n")
    group(tmp_path / "cpu/pod", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert cpu_quota(tmp_path, tmp_path / "membership") == 0.5


def test_without_a_quota_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n")
    group(tmp_path, cpu__max="max 100000\n")
    for membership in (tmp_path / "membership", tmp_path / "none"):
        assert cpu_quota(tmp_path, membership) == float("inf")


# The command, on this machine


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("KVDEPOT_"):
            monkeypatch.delenv(name)
    yield


def doctor(*flags: str, **environment: str) -> Result:
    usual = ("--l1-size", "16MiB", "--prometheus-port", "0", "--listen", "127.0.0.1:0")
    return CliRunner().invoke(app, ["doctor", *usual, *flags], env={"COLUMNS": "200", **environment})


def findings_of(result: Result) -> dict[str, dict[str, str]]:
    """Return findings by their check."""
    return {finding["check"]: finding for finding in json.loads(result.stdout)["findings"]}


def test_this_machine_can_run_a_small_depot() -> None:
    result = doctor("--json")
    findings = findings_of(result)
    assert result.exit_code == json.loads(result.stdout)["exit_code"] == 0, result.output
    assert findings["memory for L1"]["status"] == "ok"
    assert findings["listen on 127.0.0.1:0"]["what"] == "free"
    shown = doctor()
    assert shown.exit_code == 0
    for check in findings:
        assert check in shown.output


def test_an_incomplete_cupy_is_a_finding_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")

    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AttributeError("a piece is missing")

    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.nvrtc", Broken("nvrtc"))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", SimpleNamespace(nvrtc=Broken("nvrtc")))
    assert probe_cuda().nvrtc_error == "a piece is missing"


def test_a_running_depot_is_recognised_by_tcp_and_by_socket(start_server_process: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        tcp = f"127.0.0.1:{free.getsockname()[1]}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_port = str(free.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        console_port = str(free.getsockname()[1])
    pages = ("--prometheus-host", "0.0.0.0", "--prometheus-port", metrics_port, "--console-port", console_port)
    unix = start_server_process("--l1-size", "8MiB", "--listen", tcp, *pages)
    result = doctor("--listen", unix, "--listen", tcp, *pages, "--json")
    findings = findings_of(result)
    assert result.exit_code == 0, result.output
    assert {findings[f"listen on {address}"]["what"] for address in (unix, tcp)} == {"a depot serves there"}
    assert findings["metrics"]["what"] == f"0.0.0.0:{metrics_port} is served by a depot"
    assert findings["console"]["what"] == f"127.0.0.1:{console_port} is served by a depot"
    assert findings["memory for L1"]["status"] == "not applicable"


def test_taken_missing_and_silent_addresses_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "TIMEOUT_SECONDS", 0.2)  # for processes that never answer
    other_socket = tmp_path / "other.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        closing(socket.socket(socket.AF_UNIX)) as listening,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        listening.bind(str(other_socket))
        listening.listen()
        port, silent = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        listen = {
            f"127.0.0.1:{port}": "another process has it",
            f"unix:{other_socket}": "another process has it",
            f"unix:{tmp_path}/no/depot.sock": f"there is no folder {tmp_path}/no",
            f"unix:{tmp_path}/{'x' * 100}": "107 at most",
            "203.0.113.7:50051": "Cannot assign requested address",
            f"unix:{tmp_path}/depot.sock": "unix_socket_owner: this machine does not know unknown-group",
        }
        flags = [each for address in listen for each in ("--listen", address)]
        result = doctor(
            *flags,
            "--otlp-endpoint",
            f"http://127.0.0.1:{silent}",
            "--subscriber",
            "nowhere:Mine",
            "--unix-socket-owner",
            "root:unknown-group",
            "--json",
        )
        metrics = doctor("--prometheus-port", str(port), "--json")
    findings = findings_of(result)
    assert result.exit_code == 1
    for address, what in listen.items():
        assert findings[f"listen on {address}"]["status"] == "failure", findings[f"listen on {address}"]
        assert what in findings[f"listen on {address}"]["what"]
    assert "Connection refused" in findings["OTLP collector"]["what"]
    assert findings["subscribers"]["what"] == "there is no module nowhere"
    assert findings_of(metrics)["metrics"]["what"] == f"another process has 127.0.0.1:{port}"


def test_an_l1_that_does_not_fit_fails() -> None:
    result = doctor("--l1-size", "1000TiB", "--json")
    assert result.exit_code == 1
    finding = findings_of(result)["memory for L1"]
    assert finding["status"] == "failure"
    assert "lower l1_size" in finding["fix"]


def test_settings_have_the_same_sources_as_for_serve(tmp_path: Path) -> None:
    file = tmp_path / "depot.yaml"
    file.write_text(f"listen: unix:{tmp_path}/from-file.sock\ntransfer_threads: 3\n")
    result = CliRunner().invoke(
        app,
        ["doctor", "--config", str(file), "--json"],
        env={"KVDEPOT_TRANSFER_THREADS": "1", "KVDEPOT_L1_SIZE": "8MiB"},
    )
    findings = findings_of(result)
    assert f"listen on unix:{tmp_path}/from-file.sock" in findings
    assert "transfer_threads is 1 " in findings["CPUs"]["what"]
    assert findings["memory for L1"]["what"].startswith("8 MiB of")


def test_with_strict_a_warning_sets_the_exit_code() -> None:
    flags = ("--listen", "0.0.0.0:0", "--json")
    lenient, strict = doctor(*flags), doctor(*flags, "--strict")
    assert findings_of(lenient)["listen on 0.0.0.0:0"]["status"] == "warning"
    assert (lenient.exit_code, strict.exit_code) == (0, 1)


def test_bad_settings_are_a_finding_with_its_own_exit_code() -> None:
    result = doctor("--chunk-size", "none", "--l1-size", "x", "--json")
    [finding] = json.loads(result.stdout)["findings"]
    assert result.exit_code == 2
    assert finding["status"] == "failure"
    assert "chunk_size: " in finding["what"]
    assert "l1_size: " in finding["what"]


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    result = doctor("--listen", f"unix:{tmp_path}/\x1b[31m[bold]red\n/depot.sock")
    assert result.exit_code == 1
    assert r"\x1b[31m[bold]red\n" in result.output
    assert "\x1b" not in result.output


def test_a_depot_with_tls_is_recognised_by_its_certificate(
    start_server_process: Callable[..., str], tmp_path: Path
) -> None:
    cert, key = Authority().issue(days=(-1, 10)).write(tmp_path, "tls")
    tls = ("--tls-cert", cert, "--tls-key", key)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start_server_process("--l1-size", "8MiB", "--listen", address, *tls)
    findings = findings_of(doctor("--listen", address, *tls, "--json"))
    assert findings[f"listen on {address}"]["what"] == "a depot serves there"
    assert findings["TLS certificate"]["what"] == "CN=depot: 10.0 days left"
    assert findings["TLS certificate"]["status"] == "warning"
    cert, key = Authority().issue(days=(-1, 100)).write(tmp_path, "other")
    findings = findings_of(doctor("--listen", address, "--tls-cert", cert, "--tls-key", key, "--json"))
    assert findings[f"listen on {address}"]["what"] == "another process has it"
    assert findings["TLS certificate"]["status"] == "ok"


def test_a_broken_file_is_reported_with_its_fault(tmp_path: Path) -> None:
    cert, _ = Authority().issue().write(tmp_path, "tls")
    (tmp_path / "tenants.yaml").write_text("tenants: [{name: Bad}]\n")
    files = ("--tls-cert", cert, "--tls-key", f"{tmp_path}/none.key", "--tenants", f"{tmp_path}/tenants.yaml")
    result = doctor(*files, "--json")
    findings = findings_of(result)
    assert result.exit_code == 1
    assert findings["TLS certificate"]["what"] == f"{tmp_path}/none.key: No such file or directory"
    assert findings["tenants"]["status"] == "failure"
    assert "name" in findings["tenants"]["what"]
