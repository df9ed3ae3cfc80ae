"""The compose file fits the image, the chart, the command line and the files that it mounts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import typer
import yaml
from typer.main import get_command

from examples.compose.engine import LAYOUT, SHAPE, TURN_TOKENS, conversations, kv_of
from kvdepot import __version__
from kvdepot.cli.app import app
from service.units import parse_size
from tests.fakes import real_servers
from tests.image.without_docker import instructions

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "examples" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MOUNTS: list[tuple[str, str, str]] = [
    (service, mount.split(":")[0], mount.split(":")[1])
    for service, given in SERVICES.items()
    for mount in given.get("volumes", ())
]


def mounted(service: str, path: str) -> Path:
    """Return the file or folder of the repository that a service has at a path."""
    for of, source, target in MOUNTS:
        if of == service and (path == target or path.startswith(f"{target}/")):
            return Path(FOLDER / source / path.removeprefix(target).lstrip("/"))
    raise AssertionError(f"{service} has nothing at {path}")


def arguments(service: str) -> list[str]:
    return list(map(str, SERVICES[service]["command"]))


def test_what_is_mounted_exists() -> None:
    for _, source, _ in MOUNTS:
        assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source


def test_depot_and_engine_run_the_image_that_make_image_builds() -> None:
    assert {SERVICES[name]["image"] for name in ("depot", "engine")} == {f"kvdepot:{__version__}"}
    build = SERVICES["depot"]["build"]
    stages = [line.words[-1] for line in instructions(FOLDER / build["context"] / "Dockerfile") if line.word == "FROM"]
    assert build["target"] in stages


def test_the_depots_flags_are_flags_of_serve() -> None:
    command: Any = get_command(app)
    name, *flags = arguments("depot")
    parsed = command.get_command(typer.Context(command), name).make_context(name, flags, resilient_parsing=False)
    assert parse_size(parsed.params["l1_size"]) < parse_size(f"{SERVICES['depot']['mem_limit']}")


def test_the_engine_reaches_the_depots_socket_and_memory() -> None:
    variables = dict(
        word.split("=", 1)
        for line in instructions(REPOSITORY / "Dockerfile")
        if line.word == "ENV"
        for word in line.words
    )
    (address,) = arguments("engine")
    assert address in variables["KVDEPOT_LISTEN"].split(",")
    folder = str(Path(address.removeprefix("unix:")).parent)
    assert {of for of, source, target in MOUNTS if (source, target) == ("socket", folder)} == {"depot", "engine"}
    assert (SERVICES["depot"]["ipc"], SERVICES["engine"]["ipc"]) == ("shareable", "service:depot")
    assert mounted("engine", SERVICES["engine"]["entrypoint"][-1]) == FOLDER / "engine.py"
    buffers_bytes = LAYOUT.size_bytes(SHAPE) * SERVICES["engine"]["deploy"]["replicas"]
    assert buffers_bytes < parse_size(SERVICES["depot"]["shm_size"])


def test_the_depot_has_the_time_to_drain() -> None:
    assert SERVICES["depot"]["stop_grace_period"] == "30s"


def test_ports_are_open_for_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_scrapes_the_depot_and_has_the_charts_alerts(tmp_path: Path) -> None:
    flags = dict(flag.split("=", 1) for flag in arguments("prometheus"))
    file = mounted("prometheus", flags["--config.file"])
    config = yaml.safe_load(file.read_text())
    (job,) = config["scrape_configs"]
    assert "kvdepot" in job["job_name"]
    assert job["static_configs"] == [{"targets": ["depot:9464"]}]
    (rules,) = config["rule_files"]
    found = list(mounted("prometheus", rules).parent.glob(Path(rules).name))
    assert [path.name for path in found] == ["alerts.yaml"]
    promtool = real_servers.found("promtool")
    here = tmp_path / "prometheus.yaml"
    here.write_text(file.read_text().replace(rules, str(found[0])))
    checked = subprocess.run([promtool, "check", "config", str(here)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_has_the_dashboard_and_asks_prometheus() -> None:
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(mounted("grafana", f"{provisioning}/datasources/kvdepot.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["isDefault"] is True
    (provider,) = yaml.safe_load(mounted("grafana", f"{provisioning}/dashboards/kvdepot.yaml").read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])
    assert mounted("grafana", home).is_file()


def test_every_prompt_of_the_engine_fits_its_buffer_and_longer_ones_go_on_where_shorter_ones_ended() -> None:
    prompts = conversations()
    found = [next(prompts) for _ in range(200)]
    assert max(map(len, found)) <= SHAPE.num_blocks * SHAPE.block_size
    by_length = sorted(found, key=len)
    longest = next(prompt for prompt in reversed(by_length))
    shorter = [prompt for prompt in found if len(prompt) == len(longest) - TURN_TOKENS]
    assert any(np.array_equal(longest[: len(prompt)], prompt) for prompt in shorter)


def test_the_kv_of_a_token_depends_on_the_tokens_before_it() -> None:
    first, other = (kv_of(np.array([start, 5, 6], np.uint32)) for start in (1, 2))
    assert not (first == other).any()
    assert (kv_of(np.array([1, 5], np.uint32)) == first[:, :, :2]).all()
