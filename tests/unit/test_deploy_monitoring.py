"""docs/monitoring.md, the dashboard and the alert rules tell of the same metrics as the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from stream.cli import cli
from stream.metrics import Metrics, Policy, Reason

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "mmlw.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
_GRAFANA = {"$topology": "shuttle", "$__rate_interval": "1m"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page, without its head."""
    below = PAGE.split(f"# {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n?)+", below, re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def exposed() -> dict[str, tuple[str, list[str]]]:
    """Type and labels of every metric, by the name that queries use (a histogram's without suffix)."""
    metrics = Metrics()
    metrics.of("shuttle", ["spike"]).active_model("spike", "shuttle", "1", "abc", "adaptive_z")
    metrics.info.labels("1")
    found = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, [label for label in family.samples[0].labels if label != "le"])
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Title or name, and expression, of all panels and rules."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in _GRAFANA.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    for child in [*children, *(getattr(node, "args", None) or [])]:
        if child is not None:
            yield from selectors(child)


def test_the_table_of_metrics_is_the_registry() -> None:
    told = {name.strip("`"): (kind, labels.split(", ")) for name, kind, labels, _ in rows("Metrics")}
    assert told == exposed()


def test_reasons_and_policies_are_told() -> None:
    told = [reason.strip("`") for reason, _ in rows("Why a message became a dead letter")]
    assert told == list(get_args(Reason))
    assert all(f"`{policy}`" in PAGE for policy in get_args(Policy))


def test_the_table_of_panels_is_the_dashboard() -> None:
    shown: dict[str, list[str]] = {}
    row: list[str] = []
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = shown.setdefault(panel["title"], [])
        else:
            row.append(panel["title"])
    assert {name: titles.split(" · ") for name, titles in rows("Dashboard")} == shown


def test_the_table_of_rules_is_the_rules_file() -> None:
    assert [name.strip("`") for name, _ in rows("Alert rules")] == [rule["alert"] for rule in RULES]


def test_what_to_do_names_commands_that_exist() -> None:
    said = PAGE + " ".join(rule["annotations"]["action"] for rule in RULES)
    named = set(re.findall(r"\bmmlw ([a-z]+)", said))
    assert named >= {"resume", "rollback"}
    assert named <= set(cli.commands)


@pytest.mark.parametrize(("where", "expression"), list(queries()))
def test_a_query_asks_for_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    known = exposed()
    found = list(selectors(promql_parser.parse(expression)))
    used = {selector.name for selector in found if selector.name}
    assert {name for name in used if name.startswith("mmlw_")} == set(re.findall(r"\bmmlw_\w+", expression))
    for selector in found:
        name = selector.name
        if name is None or not name.startswith("mmlw_"):
            continue
        family = name.removesuffix("_bucket")
        assert family in known, f"{where}: {name}"
        asked = {matcher.name for matcher in selector.matchers.matchers} - {"instance", "job"}
        assert asked <= {*known[family][1], "le"}, f"{where}: {name}"


def test_the_dashboard_is_a_model_that_grafana_loads() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"] == "mmlw"
    assert "id" not in DASHBOARD, "a provisioned dashboard has no id of its own"
    [topology] = DASHBOARD["templating"]["list"]
    assert (topology["type"], topology["multi"], topology["includeAll"]) == ("query", True, True)
    assert {panel["type"] for panel in DASHBOARD["panels"]} == {"row", "stat", "table", "timeseries"}
    for panel in DASHBOARD["panels"]:
        assert set(panel["gridPos"]) == {"h", "w", "x", "y"}
        assert (panel["type"] == "row") == (not panel.get("targets"))
