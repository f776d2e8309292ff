"""Kinds of detectors that other installed distributions bring."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from detectors import registry
from stream.cli import cli
from stream.config import dump_yaml, load
from stream.errors import ConfigError
from stream.recipes import online_info
from tests.aio import run
from tests.plant import Plant, readings

RULES = """
import numpy as np
from detectors.base import Contributions, Detector

class Limit(Detector, frozen=True, kw_only=True):
    '''How far the first sensor is from a level.'''

    kind = "limit"
    level: float = 0.0

    def build(self, sensors):
        return _Limit(self.level, len(sensors))

class Other(Limit, frozen=True, kw_only=True):
    kind = "other"

class _Limit:
    threshold = 10.0

    def __init__(self, level, width):
        self.level, self.width = level, width

    def score_learn(self, slots, values, times, learn=None):
        return np.abs(np.nan_to_num(values[:, 0]) - self.level)

    def contributions(self, rows):
        shape = (len(rows), self.width)
        return Contributions(np.full(shape, 1 / self.width), np.full(shape, self.level))

    def snapshot(self, slots):
        return {}

    def restore(self, slots, rows):
        pass

notes = "nothing of use"
"""
TOPOLOGY = """
name: plant
source:
  sensors: [a, b]
detectors:
  far: {kind: KIND, SETTINGS}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where distributions are installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("plant_rules", None)


def install(site: Path, name: str, **kinds: str) -> None:
    (site / "plant_rules.py").write_text(RULES)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "\n".join(f"{kind} = {value}" for kind, value in kinds.items())
    (info / "entry_points.txt").write_text(f"[mmlw.detectors]\n{points}\n")


def written(folder: Path, kind: str, settings: str = "level: 1.0") -> Path:
    path = folder / "plant.yaml"
    path.write_text(TOPOLOGY.replace("KIND", kind).replace("SETTINGS", settings))
    return path


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    [found] = caught.value.problems
    return f"{found.place}: {found.message}"


def test_kind_of_an_installed_distribution_is_named_in_a_topology_and_scores(
    site: Path, tmp_path: Path
) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit")
    path = written(tmp_path, "limit")
    checked = CliRunner().invoke(cli, ["check", str(path)])
    assert checked.exit_code == 0, checked.output
    topology = load(path)
    assert "kind: limit" in dump_yaml(topology)

    async def story() -> None:
        plant = Plant(tmp_path, topology)
        await plant.declare()
        await plant.publish(readings(200))
        await plant.process(200)
        alerts = await plant.alerts()
        assert {alert.detector for alert in alerts} == {"far"}
        assert {alert.model.kind for alert in alerts} == {"limit"}

    run(story())


def test_kinds_that_are_installed_are_listed_and_explained(site: Path) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit", broken="plant_rules:Nothing")
    listed = CliRunner().invoke(cli, ["detectors", "--json"])
    assert "limit" in {kind["kind"] for kind in json.loads(listed.stdout)}
    assert "broken = plant_rules:Nothing" in listed.stderr
    explained = CliRunner().invoke(cli, ["detectors", "limit"])
    assert "How far the first sensor is from a level" in explained.stdout
    assert "level: 0.0" in explained.stdout


def test_nothing_is_imported_that_no_topology_names(site: Path, tmp_path: Path) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit")
    load(written(tmp_path, "adaptive_z", "warmup: 20"))
    assert "far.kind: unknown kind" in problem(written(tmp_path, "plant_rules:Limit"))
    assert "plant_rules" not in sys.modules


@pytest.mark.parametrize(
    ("points", "kind", "said"),
    [
        ({}, "limit", 'unknown kind "limit"'),
        ({"limit": "plant_rules:Limit"}, "limits", 'unknown kind "limits". Did you mean "limit"?'),
        ({"limit": "plant_rules:Limit"}, "oracle", "Known: adaptive_z, "),
        ({"limit": "plant_rules:Limit"}, "oracle", ", limit, "),
        ({"limit": "plant_rules:Missing"}, "limit", "cannot be loaded: AttributeError"),
        ({"limit": "no_such_module:Limit"}, "limit", "cannot be loaded: ModuleNotFoundError"),
        ({"limit": "plant_rules:notes"}, "limit", "is no subclass of detectors.base.Detector"),
        ({"limit": "plant_rules:Other"}, "limit", 'calls itself kind "other": give both one name'),
    ],
)
def test_kind_that_cannot_be_had_is_a_clear_error(
    site: Path, tmp_path: Path, points: dict[str, str], kind: str, said: str
) -> None:
    install(site, "plant-rules", **points)
    found = problem(written(tmp_path, kind))
    assert "detectors.far.kind: " in found
    assert said in found


def test_unknown_setting_of_an_installed_kind_is_a_problem(site: Path, tmp_path: Path) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit")
    assert 'unknown setting "levels". Did you mean "level"?' in problem(
        written(tmp_path, "limit", "levels: 1")
    )


def test_two_distributions_of_one_kind_are_refused(site: Path, tmp_path: Path) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit")
    install(site, "more-rules", limit="plant_rules:Limit")
    assert "is brought by more-rules and plant-rules" in problem(written(tmp_path, "limit"))


def test_our_own_kinds_cannot_be_replaced(site: Path, tmp_path: Path) -> None:
    install(site, "plant-rules", adaptive_z="plant_rules:Limit", pca="plant_rules:Limit")
    spec = load(written(tmp_path, "adaptive_z", "warmup: 20")).detectors["far"]
    assert type(spec) is registry.ONLINE["adaptive_z"]
    assert registry.installed() == {}


def test_state_of_two_installed_kinds_is_told_apart_though_their_settings_are_the_same(site: Path) -> None:
    install(site, "plant-rules", limit="plant_rules:Limit", other="plant_rules:Other")
    one: Any = registry.load_installed("limit")
    other: Any = registry.load_installed("other")
    assert online_info(one()).digest != online_info(other()).digest
    assert online_info(one()).digest == online_info(one()).digest
