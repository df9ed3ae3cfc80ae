"""Alerts, one by one: each can be turned off and changed, and Prometheus evaluates what comes out."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.conftest import Install, Installed
from tests.helm.test_alerts import ALERTS, RECORDED, RUNBOOK
from tools.generate.chart_alerts import THRESHOLD

WITH_THRESHOLD = [name for name, rule in ALERTS.items() if THRESHOLD.search(rule["expr"])]


def alerts(release: Installed) -> dict[str, dict[str, Any]]:
    """Return a release's alerts by name."""
    groups = release["PrometheusRule"]["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def changed(install: Install, name: str, **values: Any) -> dict[str, Any]:
    """Return one alert with values of its own; all others stay as they are."""
    found = alerts(install({"alerts": {"rules": {name: values}}}))
    assert {other: rule for other, rule in found.items() if other != name} == {
        other: rule for other, rule in ALERTS.items() if other != name
    }
    return found[name]


def test_every_alert_that_compares_with_a_number_has_a_threshold() -> None:
    without = {name: rule["expr"] for name, rule in ALERTS.items() if name not in WITH_THRESHOLD}
    assert without.keys() == {
        "KvdepotAbsent",
        "KvdepotDown",
        "KvdepotDraining",
        "KvdepotL1NotPopulated",
        "KvdepotFileBroken",
    }


def test_each_can_be_turned_off_alone_and_all_together(install: Install) -> None:
    off = {name: {"enabled": False} for name in ALERTS}
    for name in ("KvdepotAbsent", "KvdepotBlockReportsMalformed"):
        assert alerts(install({"alerts": {"rules": {name: off[name]}}})).keys() == ALERTS.keys() - {name}
    groups = install({"alerts": {"rules": off}})["PrometheusRule"]["spec"]["groups"]
    assert {rule.get("record") for group in groups for rule in group["rules"]} == RECORDED
    assert all(group["rules"] for group in groups)


def test_a_threshold_is_replaced_wherever_it_stands_and_the_description_says_so(install: Install) -> None:
    rule = changed(install, "KvdepotErrorsFast", threshold=0.05)
    assert rule["expr"].count("> 0.05 # threshold") == 2
    assert "14.4" not in rule["expr"]
    assert rule["annotations"]["description"].endswith(
        " This installation uses a threshold of 0.05 instead of 14.4 * 0.001."
    )
    assert rule["for"] == "2m"


@pytest.mark.parametrize("threshold", [0, 5e8, 0.00001])
def test_thresholds_are_numbers_to_prometheus(
    install: Install, promtool: str, tmp_path: Path, threshold: float
) -> None:
    groups = install({"alerts": {"rules": {name: {"threshold": threshold} for name in WITH_THRESHOLD}}})[
        "PrometheusRule"
    ]["spec"]["groups"]
    for rule in (rule for group in groups for rule in group["rules"] if rule.get("alert") in WITH_THRESHOLD):
        numbers = re.findall(r"(\S+) # threshold", rule["expr"])
        assert set(map(float, numbers)) == {threshold}, rule["alert"]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    checked = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_durations_labels_and_annotations_are_merged(install: Install) -> None:
    rule = changed(
        install,
        "KvdepotLeasesExpire",
        **{"for": "2h", "keep_firing_for": "5m", "labels": {"severity": "critical"}, "annotations": {"owner": "ml"}},
    )
    assert (rule["for"], rule["keep_firing_for"]) == ("2h", "5m")
    assert rule["labels"] == {"severity": "critical"}
    assert (
        rule["annotations"].items()
        > {"owner": "ml", "summary": ALERTS["KvdepotLeasesExpire"]["annotations"]["summary"]}.items()
    )
    assert rule["annotations"]["description"].endswith(" This installation uses a duration of 2h instead of 30m.")


def test_all_alerts_get_labels_and_annotations_and_their_own_count_more(install: Install) -> None:
    values = {"labels": {"team": "ml", "tier": "a"}, "annotations": {"dashboard_url": "d"}}
    found = alerts(install({"alerts": {**values, "rules": {"KvdepotDown": {"labels": {"tier": "b"}}}}}))
    assert {rule["labels"]["team"] for rule in found.values()} == {"ml"}
    assert {rule["annotations"]["dashboard_url"] for rule in found.values()} == {"d"}
    assert {name for name, rule in found.items() if rule["labels"]["tier"] == "b"} == {"KvdepotDown"}
    assert found["KvdepotDown"]["labels"]["severity"] == "warning"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://wiki.example.com/operations", "https://wiki.example.com/operations#kvdepotdown"),
        ("https://runbooks.example.com/kvdepot/", "https://runbooks.example.com/kvdepot/kvdepotdown"),
    ],
)
def test_runbooks_are_where_the_team_has_them(install: Install, base: str, url: str) -> None:
    found = alerts(install({"alerts": {"runbookBaseUrl": base}}))
    assert found["KvdepotDown"]["annotations"]["runbook_url"] == url
    assert all(rule["annotations"]["runbook_url"].startswith(base) for rule in found.values())


def test_the_example_of_the_operators_manual_works(install: Install) -> None:
    (text,) = re.findall(r"```yaml\n(alerts:.*?)```", RUNBOOK.read_text(), re.DOTALL)
    found = alerts(install(yaml.safe_load(text)))
    assert "KvdepotLeasesExpire" not in found
    assert "> 0.5 # threshold" in found["KvdepotL1TooSmall"]["expr"]
    assert found["KvdepotDown"]["labels"]["severity"] == "critical"


def test_groups_of_ones_own_come_last(install: Install) -> None:
    group = {"name": "ours", "rules": [{"alert": "Ours", "expr": "up == 0"}]}
    assert install({"alerts": {"extraGroups": [group]}})["PrometheusRule"]["spec"]["groups"][-1] == group


def test_prometheus_fires_at_the_given_threshold_and_duration(install: Install, promtool: str, tmp_path: Path) -> None:
    """One depot of four is down. That is quiet by default, and not with a threshold of 0.9 for 10 minutes."""
    given = {"threshold": 0.9, "for": "10m", "labels": {"severity": "warning"}}
    release = install({"alerts": {"rules": {"KvdepotManyDown": given}}})
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(release["PrometheusRule"]["spec"]))
    series = [{"series": f'up{{job="kvdepot", instance="{n}"}}', "values": f"{int(n > 0)}+0x30"} for n in range(4)]
    expected = {
        "exp_labels": {"job": "kvdepot", "severity": "warning"},
        "exp_annotations": {
            **alerts(release)["KvdepotManyDown"]["annotations"],
            "summary": "Only 75% of the depots of kvdepot are up.",
        },
    }
    asked = {"alertname": "KvdepotManyDown"}
    times = [{**asked, "eval_time": "9m", "exp_alerts": []}, {**asked, "eval_time": "11m", "exp_alerts": [expected]}]
    tests = {"interval": "1m", "input_series": series, "alert_rule_test": times}
    file = tmp_path / "tests.yaml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [tests]}))
    run = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
