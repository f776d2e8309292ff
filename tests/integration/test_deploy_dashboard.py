"""What the dashboard shows is true: as many readings, dead letters and commands as there were, and a clean end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import yaml

from tests.aio import run
from tests.integration.prometheus_server import Target, ask, assert_panels_have_data, prometheus, queries
from tests.rabbitmq_node import RabbitNode, free_port

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "mmlw.json").read_text())
RULES = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
QUEUES = {"family": ["queue_coarse_metrics", "queue_consumer_count"], "vhost": ["/"]}
READINGS, BROKEN, RATE = 1000, 20, 200
COPIES = 8
NUMBERED = b'{"machine": "branch-1", "time": "2020-01-01T00:00:00Z", "seq": 1, "values": {"flow_l_s": 100}}'


@contextmanager
def worker(broker: str, folder: Path) -> Iterator[str]:
    """`mmlw run` as users start it: `host:port` of its metrics. Told to stop, it must end with code 0."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "stream", "run", str(ROOT / "topologies" / "water_flow.yaml")]
    command += ["--broker", broker, "--http", address, "--data", str(folder / "data"), "--log", "json"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 240
        while not ready(address):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the worker was not ready within 60 s"
            time.sleep(0.1)
        yield address
        process.terminate()
        assert process.wait(timeout=120) == 0, (folder / "log").read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=120)


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def mmlw(*arguments: str, code: int = 0) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr


async def publish_odd(broker: str) -> None:
    """Messages that nobody can use, and one that is sent several times over."""
    connection = await aio_pika.connect(broker)
    async with connection:
        exchange = await (await connection.channel()).get_exchange("mmlw.sensors", ensure=False)
        async with asyncio.TaskGroup() as tasks:
            for body in [b"{"] * BROKEN + [NUMBERED] * COPIES:
                tasks.create_task(exchange.publish(aio_pika.Message(body), "sensor.branch-1.readings"))


def until(url: str, query: str, value: float, *, seconds: float = 240.0) -> None:
    """Poll until a query finds one series with this value."""
    deadline = time.monotonic() + seconds
    while (found := values(url, query)) != [value]:
        assert time.monotonic() < deadline, f"{query} is {found} and not {value}"
        time.sleep(0.2)


def values(url: str, query: str) -> list[float]:
    return [float(one["value"][1]) for one in ask(url, "query", query=query)["result"]]


@pytest.mark.timeout(300)
def test_the_dashboard_tells_what_happened(rabbitmq: RabbitNode, tmp_path: Path) -> None:
    broker, node = rabbitmq.url(), f"127.0.0.1:{rabbitmq.prometheus_port}"
    with worker(broker, tmp_path) as address:
        targets = [
            Target("mmlw", address),
            Target("rabbitmq", node),
            Target("rabbitmq-queues", node, "/metrics/detailed", QUEUES),
        ]
        with prometheus(targets, rules=RULES) as url:
            for target in targets:
                until(url, f'up{{job="{target.job}"}}', 1)
            run(publish_odd(broker))
            rows = ("--rate", str(RATE), "--limit", str(READINGS))
            mmlw("publish", "--dataset", "water_flow", *rows, "--broker", broker)
            mmlw("status", "water_flow", "--broker", broker)
            mmlw("swap", "water_flow", "models:/nothing@champion", "--broker", broker, code=1)
            mmlw("pause", "water_flow", "--broker", broker)

            assert_panels_have_data(url, DASHBOARD, topology="water_flow")
            until(url, "mmlw_messages_received_total", READINGS + BROKEN + COPIES)
            until(url, "mmlw_messages_processed_total", READINGS + 1)
            until(url, 'mmlw_readings_scored_total{detector="level"}', READINGS + 1)
            until(url, 'mmlw_messages_passed_over_total{policy="duplicate"}', COPIES - 1)
            until(url, 'mmlw_readings_dropped_total{policy="duplicate"}', COPIES - 1)
            [unsettled] = [
                query for title, query in queries(DASHBOARD) if title == "Received and not settled"
            ]
            until(url, unsettled, 0)
            until(url, 'mmlw_messages_deadlettered_total{reason="not_decodable"}', BROKEN)
            until(url, "sum(mmlw_messages_deadlettered_total)", BROKEN)
            until(url, 'sum(mmlw_commands_total{status="applied"})', 2)
            until(url, 'mmlw_commands_total{verb="swap", status="refused"}', 1)
            until(url, "mmlw_paused", 1)
            until(url, "mmlw_lag_messages", 0)
            until(url, "count(mmlw_model_info)", 1)
            until(url, 'rabbitmq_detailed_queue_messages{queue="mmlw.deadletters"}', BROKEN)
            opened = 'mmlw_alerts_total{detector="level", event="opened"}'
            closed = opened.replace("opened", "closed")
            until(url, f"{opened} - ignoring(event) {closed} - ignoring(event) mmlw_alerts_open", 0)
            until(url, f"{opened} > bool 0", 1)

            until_evaluated(
                url, len([rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]])
            )


def until_evaluated(url: str, count: int, *, seconds: float = 240.0) -> None:
    """Poll until this many rules were evaluated; an error of one fails."""
    deadline = time.monotonic() + seconds
    while True:
        rules = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
        assert not {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")}
        if len([rule for rule in rules if rule["health"] == "ok"]) == count:
            return
        assert time.monotonic() < deadline, {rule["name"]: rule["health"] for rule in rules}
        time.sleep(0.2)
