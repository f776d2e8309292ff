"""A real Prometheus scrapes a running worker and its RabbitMQ: every panel has data, and an outage rings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.prometheus_server import Target, ask, assert_panels_have_data, prometheus
from tests.rabbitmq_node import free_port, rabbit_node

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "mmlw.json").read_text())
RULES = {
    rule["alert"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}


@dataclass(frozen=True)
class Plant:
    """Prometheus' address, and the worker it watches."""

    prometheus: str
    worker: subprocess.Popen[bytes]
    log: Path


def impatient(rules: str) -> str:
    """The rules with every `for:` cut to a second, since a test waits for an outage to ring."""
    return re.sub(r"\bfor: \w+", "for: 1s", rules)


def jobs(addresses: dict[str, str]) -> list[Target]:
    """The jobs of the deployed prometheus.yml, their hosts replaced by addresses on loopback."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    return [
        Target(job["job_name"], addresses[host], job.get("metrics_path", "/metrics"), job.get("params", {}))
        for job in config["scrape_configs"]
        if (host := job["static_configs"][0]["targets"][0].partition(":")[0]) in addresses
    ]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A worker, a machine and an idle second topology's queue on a RabbitMQ of their own; Prometheus beside them."""
    folder, port = tmp_path_factory.mktemp("plant"), free_port()
    mmlw = [sys.executable, "-m", "stream"]
    with rabbit_node(plugins=["rabbitmq_prometheus"]) as node, (folder / "log").open("wb") as log:
        broker = f"--broker={node.url()}"
        topology = str(ROOT / "topologies" / "water_flow.yaml")
        options = ["--data", str(folder), f"--http=127.0.0.1:{port}", "--log=json", "--wait=20"]
        worker = subprocess.Popen(
            [*mmlw, "run", topology, broker, *options], cwd=ROOT, stdout=log, stderr=log
        )
        until_ready(f"http://127.0.0.1:{port}/readyz")  # the worker declares what the machine publishes to
        machine = subprocess.Popen(
            [*mmlw, "publish", "--dataset=water_flow", "--rate=200", "--loop", broker],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        addresses = {"worker": f"127.0.0.1:{port}", "rabbitmq": f"127.0.0.1:{node.prometheus_port}"}
        rules = impatient((DEPLOY / "prometheus" / "rules.yml").read_text())
        try:
            with prometheus(jobs(addresses), rules=rules) as url:
                yield Plant(url, worker, folder / "log")
        finally:
            for process in (machine, worker):
                process.kill()
                process.wait(timeout=120)


def until_ready(url: str, seconds: float = 240.0) -> None:
    """Poll until the worker reads."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def firing(url: str) -> set[str]:
    return {
        alert["labels"]["alertname"] for alert in ask(url, "alerts")["alerts"] if alert["state"] == "firing"
    }


def until_firing(url: str, wanted: set[str], *, seconds: float) -> None:
    """Poll until these alerts fire, among others or not."""
    deadline = time.monotonic() + seconds
    while not wanted <= (found := firing(url)):
        assert time.monotonic() < deadline, f"of {sorted(wanted)} fire only {sorted(found)}"
        time.sleep(0.5)


def until_quiet(url: str, *, allowed: set[str], seconds: float) -> None:
    """Poll until no alert fires but these: a rule that rang while things started needs its next evaluation."""
    deadline = time.monotonic() + seconds
    while not (found := firing(url)) <= allowed:
        assert time.monotonic() < deadline, f"still firing: {sorted(found - allowed)}"
        time.sleep(0.5)


def until_consumers(url: str, wanted: dict[str, int], *, seconds: float = 240.0) -> None:
    """Poll until RabbitMQ counts so many consumers of these queues; it does so every five seconds."""
    deadline = time.monotonic() + seconds
    query = 'rabbitmq_detailed_queue_consumers{queue=~"mmlw[.].+"}'
    while True:
        result = ask(url, "query", query=query)["result"]
        found = {it["metric"]["queue"]: int(it["value"][1]) for it in result}
        if wanted.items() <= found.items():
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_every_panel_has_data(plant: Plant) -> None:
    try:
        assert_panels_have_data(plant.prometheus, DASHBOARD, topology="water_flow")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{plant.log.read_text()[-3000:]}") from error
    assert "water_flow" in ask(plant.prometheus, "label/topology/values")
    up = ask(plant.prometheus, "query", query="up")["result"]
    assert {(it["metric"]["job"], it["value"][1]) for it in up} == {
        ("mmlw", "1"), ("rabbitmq", "1"), ("rabbitmq-queues", "1"),
    }  # fmt: skip


def test_a_panel_without_data_is_named(plant: Plant) -> None:
    panel = {"title": "Nothing", "targets": [{"expr": "mmlw_nothing"}]}
    with pytest.raises(AssertionError, match="no data for:\nNothing: mmlw_nothing"):
        assert_panels_have_data(plant.prometheus, {"panels": [panel]}, seconds=1.0)


def test_rules_evaluate_on_real_series_and_keep_quiet_while_all_is_well(plant: Plant) -> None:
    rules = [rule for group in ask(plant.prometheus, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == RULES
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    until_consumers(plant.prometheus, {"mmlw.readings.water_flow": 1, "mmlw.control.water_flow": 1})
    # a year of readings a minute is a storm of alerts indeed
    until_quiet(plant.prometheus, allowed={"MmlwAlertStorm"}, seconds=240.0)


def test_a_dead_worker_rings_by_two_ways(plant: Plant) -> None:
    plant.worker.kill()
    plant.worker.wait(timeout=120)
    until_firing(plant.prometheus, {"MmlwWorkerDown", "MmlwQueueUnread"}, seconds=240.0)
    alerts = ask(plant.prometheus, "alerts")["alerts"]
    said = {it["labels"]["alertname"]: it["annotations"]["summary"] for it in alerts}
    assert said["MmlwQueueUnread"] in {
        "Nobody reads mmlw.readings.water_flow",
        "Nobody reads mmlw.control.water_flow",
    }
    assert not any("<" in text for text in said.values()), "a template failed"
