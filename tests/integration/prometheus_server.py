"""A private Prometheus on loopback, and the questions tests put to it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.rabbitmq_node import free_port

__all__ = ["Target", "ask", "assert_panels_have_data", "prometheus", "queries"]

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Target:
    """What Prometheus scrapes: an address, under the job name that dashboards and rules expect."""

    job: str
    address: str
    """`host:port`"""
    path: str = "/metrics"
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)


@contextlib.contextmanager
def prometheus(targets: Sequence[Target], *, rules: str | None = None) -> Iterator[str]:
    """The address of a Prometheus that scrapes these every second; `rules` is the text of a rules file."""
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed: run the tests with `make test`, which installs it"
    folder = Path(tempfile.mkdtemp(prefix="mmlw-prometheus-"))
    url = f"http://127.0.0.1:{free_port()}"
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": target.job,
                "metrics_path": target.path,
                "params": {name: list(values) for name, values in target.params.items()},
                "static_configs": [{"targets": [target.address]}],
            }
            for target in targets
        ],
    }
    if rules is not None:
        (folder / "rules.yml").write_text(rules)
        config["rule_files"] = [str(folder / "rules.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], cwd=folder, stdout=log, stderr=log)
    try:
        _until_ready(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


def ask(url: str, path: str, **parameters: str) -> Any:
    """The `data` of an answer of Prometheus' API, such as `ask(url, "query", query="up")`."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    try:
        with _DIRECT.open(f"{url}/api/v1/{path}{query}", timeout=10) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error


_EMPTY_AT_FIRST = {"Quality by labels", "False alarms a day, labels", "Age of the last training"}


def queries(
    dashboard: Mapping[str, Any], *, topology: str = ".+", window: str = "1m"
) -> list[tuple[str, str]]:
    """(panel title, expression) for every query of a dashboard, Grafana's variables filled in."""
    return [
        (panel["title"], target["expr"].replace("$topology", topology).replace("$__rate_interval", window))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def assert_panels_have_data(
    url: str, dashboard: Mapping[str, Any], *, topology: str = ".+", seconds: float = 240.0
) -> None:
    """Every query of the dashboard returns at least one number within `seconds`; else all that do not are named.

    What shows nothing before labels came, or a training by rule, must at least ask for a series that there is."""
    missing = queries(dashboard, topology=topology)
    assert missing
    deadline = time.monotonic() + seconds
    while missing and time.monotonic() < deadline:
        time.sleep(0.5)
        missing = [(title, query) for title, query in missing if not _has_data(url, title, query)]
    assert not missing, "no data for:\n" + "\n".join(f"{title}: {query}" for title, query in missing)


def _has_data(url: str, title: str, query: str) -> bool:
    if title in _EMPTY_AT_FIRST:
        return all(ask(url, "query", query=metric)["result"] for metric in re.findall(r"mmlw_\w+", query))
    found = ask(url, "query", query=query)["result"]
    return any(math.isfinite(float(series["value"][1])) for series in found)


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), _DIRECT.open(f"{url}/-/ready", timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Prometheus did not start: {log.read_text()[-2000:]}")
