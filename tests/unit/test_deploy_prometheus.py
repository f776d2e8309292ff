"""Prometheus' configuration and alert rules: valid, proven to ring and to keep quiet, about metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from stream.cli import cli
from stream.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
STORIES: dict[str, Any] = yaml.safe_load((FOLDER / "rules_test.yml").read_text())
BY_NAME: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}

each_rule = pytest.mark.parametrize("name", sorted(BY_NAME))


def promtool(*arguments: str, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is not installed: run the tests with `make test`, which installs it"
    return subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_configuration_and_rules_are_valid() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(BY_NAME)} rules found" in done.stdout
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_story_of_the_rules_comes_true() -> None:
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@each_rule
def test_a_rule_that_never_or_always_rings_is_caught(name: str, tmp_path: Path) -> None:
    """The stories about a rule must fail once it is spoiled, so they see it ring and see it silent."""
    stories = [story for story in STORIES["tests"] if f'alertname="{name}"' in str(story)]
    assert stories, f"no story of rules_test.yml makes {name} ring"
    (tmp_path / "rules_test.yml").write_text(yaml.safe_dump({**STORIES, "tests": stories}))
    for spoiled in ("vector(0) > 1", "vector(1)"):
        groups = [
            {
                **group,
                "rules": [
                    {"alert": name, "expr": spoiled} if rule["alert"] == name else rule
                    for rule in group["rules"]
                ],
            }
            for group in RULES["groups"]
        ]
        (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
        done = promtool("test", "rules", "rules_test.yml", cwd=tmp_path)
        assert done.returncode == 1, f"{name} as {spoiled}: the stories did not notice"
        assert "FAILED" in done.stdout + done.stderr


@each_rule
def test_rule_says_what_happened_and_what_to_do(name: str) -> None:
    rule = BY_NAME[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "action"}
    assert "{{ $labels." in rule["annotations"]["summary"], "the summary must say where"
    assert len(rule["annotations"]["action"]) > 60
    for verb in re.findall(r"\bmmlw ([a-z]+)", rule["annotations"]["action"]):
        assert verb in cli.commands, f"there is no mmlw {verb}"
    assert name in (ROOT / "docs" / "deployment.md").read_text(), "docs/deployment.md lists every rule"


@each_rule
def test_rule_reads_metrics_and_label_values_that_exist(name: str) -> None:
    metrics = Metrics()
    metrics.of("shuttle", ["spike"]).active_model("spike", "shuttle", "1", "abc", "adaptive_z")
    exposed = metrics.exposition().decode()
    expression = BY_NAME[name]["expr"]
    promql_parser.parse(expression)
    for used in re.findall(r"\bmmlw_\w+", expression):
        assert re.search(rf"^{used}[{{ ]", exposed, re.MULTILINE), used
    for label, value in re.findall(r'\b(reason|event|status|cause)!?="(\w+)"', expression):
        assert f'{label}="{value}"' in exposed, f"{label}={value}"


def test_jobs_scrape_services_of_the_compose_file_on_a_network_they_share() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    jobs = {job["job_name"]: job for job in CONFIG["scrape_configs"]}
    assert set(jobs) == {"mmlw", "rabbitmq", "rabbitmq-queues", "prometheus"}
    for job in jobs.values():
        for target in job["static_configs"][0]["targets"]:
            host = target.partition(":")[0]
            if host != "localhost":
                assert set(services[host]["networks"]) & set(services["prometheus"]["networks"]), host
    worker = next(word for word in services["worker"]["command"] if word.startswith("--http="))
    assert jobs["mmlw"]["static_configs"] == [{"targets": [f"worker:{worker.rpartition(':')[2]}"]}]
    conf = (ROOT / "deploy" / "rabbitmq" / "rabbitmq.conf").read_text()
    port = re.search(r"^prometheus\.tcp\.port = (\d+)$", conf, re.MULTILINE)
    assert port
    for job in ("rabbitmq", "rabbitmq-queues"):
        assert jobs[job]["static_configs"] == [{"targets": [f"rabbitmq:{port[1]}"]}]
    asked = set(re.findall(r'job="([\w-]+)"', (FOLDER / "rules.yml").read_text()))
    assert asked <= set(jobs)
