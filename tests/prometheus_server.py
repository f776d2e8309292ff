"""A private Prometheus with the product's alert rules: scrapes each second, answers queries, gone at the end."""

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.rabbitmq_node import free_port

__all__ = ["RULES", "assert_panels_have_data", "expressions", "get", "prometheus_server", "series"]

RULES = Path(__file__).resolve().parents[1] / "deploy" / "prometheus" / "rules.yml"
_START_SECONDS = 30
_VARIABLES = {"__rate_interval": "1m", "__interval": "5s", "__range": "5m", "topology": ".+"}
"""What Grafana would put in place: the interval of a rate, and a variable's "all"."""


@contextlib.contextmanager
def prometheus_server(targets: Mapping[str, str]) -> Iterator[str]:
    """Its address, once it is ready.

    `targets` maps a job's name to `host:port`, `host:port/path` or `host:port/path?name=value`. Raises RuntimeError
    with the server's output where it does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("prometheus is not installed: run the tests with `make test`, which installs it")
    folder = Path(tempfile.mkdtemp(prefix="mmlw-prometheus-"))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(targets)))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:
        _wait_until_ready(url, process, folder / "output")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def get(url: str, path: str, **arguments: str) -> Any:
    """The `data` of one call of Prometheus' interface, such as `get(url, "rules")`. Raises AssertionError."""
    address = f"{url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{path} {arguments}: {error.read().decode()}") from None


def series(url: str, query: str) -> list[dict[str, Any]]:
    """The series of an instant query now, each with `metric` and `value`; those that are NaN are left out."""
    result = get(url, "query", query=query)["result"]
    return [one for one in result if not math.isnan(float(one["value"][1]))]


def expressions(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title of the panel and query, for every query of a dashboard, variables in place."""
    for panel in dashboard["panels"]:
        yield from expressions({"panels": panel.get("panels", [])})
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", _filled(target["expr"])


def assert_panels_have_data(url: str, dashboard: Mapping[str, Any], within_seconds: float) -> None:
    """Wait until every query of every panel finds a number. Raises AssertionError naming those that do not."""
    missing = dict(expressions(dashboard))
    assert missing, "the dashboard has no queries"
    deadline = time.monotonic() + within_seconds
    while missing:
        missing = {panel: query for panel, query in missing.items() if not series(url, query)}
        if missing and time.monotonic() > deadline:
            named = "\n".join(f"  {panel}: {query}" for panel, query in missing.items())
            raise AssertionError(f"no data after {within_seconds:.0f} s in\n{named}")
        time.sleep(0.5 if missing else 0)


def _filled(expression: str) -> str:
    filled = re.sub(r"\$\{?(\w+)\}?", lambda found: _VARIABLES.get(found[1], found[0]), expression)
    assert "$" not in filled, f"unknown variable in {expression}"
    return filled


def _configuration(targets: Mapping[str, str]) -> dict[str, Any]:
    jobs = []
    for job, target in targets.items():
        parts = urllib.parse.urlsplit(f"//{target}")
        jobs.append(
            {
                "job_name": job,
                "metrics_path": parts.path or "/metrics",
                "params": urllib.parse.parse_qs(parts.query),
                "static_configs": [{"targets": [parts.netloc]}],
            }
        )
    pace = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": pace, "rule_files": [str(RULES)], "scrape_configs": jobs}


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError(f"prometheus did not start: {output.read_text()[-2000:]}")
