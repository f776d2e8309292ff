"""The dashboard: as its code writes it, laid out without gaps, asking only for what the product exposes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser
import yaml

from stream.metrics import Metrics
from tests.integration.prometheus_server import queries

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
WRITTEN = GRAFANA / "dashboards" / "mmlw.json"
DASHBOARD: dict[str, Any] = json.loads(WRITTEN.read_text())
# Not worth a place on the screen: the newest reading's own clock, and a version.
NOT_SHOWN = {
    "mmlw_build_info",
    "mmlw_last_reading_timestamp_seconds",
}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", GRAFANA / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_dashboard_is_what_the_code_writes() -> None:
    module = generator()
    assert module.text() == module.text()
    assert WRITTEN == module.PATH
    assert WRITTEN.read_text() == module.text(), "run: python deploy/grafana/dashboard.py"


def test_nothing_is_null_but_the_lowest_threshold() -> None:
    assert re.findall(r'"(\w+)": null', WRITTEN.read_text()) == ["value"] * 8


def test_panels_are_numbered_described_and_fill_their_rows() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height, "there is a hole in the page"


def test_every_query_parses_and_names_the_provisioned_source() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    sources = {source["uid"] for source in provisioned["datasources"]}
    for _, expression in queries(DASHBOARD):
        promql_parser.parse(expression)
        assert "$" not in expression
    for panel in DASHBOARD["panels"]:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert letters == list("ABCDEFGH"[: len(letters)])
        for target in panel.get("targets", []):
            assert target["datasource"] == panel["datasource"]
            assert target["datasource"]["uid"] in sources
    variable = DASHBOARD["templating"]["list"]
    assert [(item["name"], item["query"]["query"]) for item in variable] == [
        ("topology", "label_values(mmlw_consuming, topology)")
    ]


def test_every_metric_of_the_product_is_shown_and_every_shown_one_exists() -> None:
    families = {family.name: family for family in Metrics().registry.collect()}
    suffixes = {"counter": ("_total",), "histogram": ("_bucket",), "gauge": ("",)}
    exposed = {name: {name + end for end in suffixes[it.type]} for name, it in families.items()}
    text = " ".join(expression for _, expression in queries(DASHBOARD))
    used = set(re.findall(r"\bmmlw_\w+", text))
    assert used <= set().union(*exposed.values())
    assert {name for name, samples in exposed.items() if not samples & used} == NOT_SHOWN


def test_grafana_finds_the_files_where_the_compose_file_mounts_them() -> None:
    services = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/mmlw.yml").read_text())["providers"][0]
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][
        0
    ]
    assert source["url"] == "http://prometheus:9090"
    assert set(services["grafana"]["networks"]) & set(services["prometheus"]["networks"])
    scraped = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
