"""Detectors bound to machines by pattern: who is scored by what, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from detectors import AdaptiveZ, HalfSpaceTrees
from detectors.calibration import Calibration
from stream.arrivals import UNNUMBERED
from stream.binding import Binding
from stream.config import dump_yaml, load
from stream.errors import ConfigError
from stream.readings import Batch
from stream.recipes import online_info
from stream.rules import AlertRule, Combination
from stream.scorer import Scored, Scorer
from stream.topology import RegistryModel, Sensor, Source, Topology
from tests.aio import run
from tests.plant import Plant, Scale, ScaleShelf, readings

START = 1_700_000_000.0
MACHINES = ("pump-1", "fan-1", "pump-2", "valve", "fan-2", "pump-3")
Z, TREES = AdaptiveZ(warmup=20, half_life=50), HalfSpaceTrees(window_size=30, n_trees=5, height=4)


def scorer(detectors: dict[str, Any], **settings: Any) -> Scorer:
    sensors = (Sensor("a"), Sensor("b"))
    topology = Topology(name="t", source=Source(sensors=sensors), detectors=detectors, **settings)
    models = {
        name: (spec.build(topology.inputs(name)), online_info(spec)) for name, spec in detectors.items()
    }
    return Scorer(topology, models)


def bound(recipe: Any, *machines: str) -> Any:
    return msgspec.structs.replace(recipe, machines=machines)


def stream(n: int, machines: tuple[str, ...] = MACHINES, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    values: Any = rng.normal(size=(n, 2)) + 12.0 * (rng.random((n, 1)) < 0.03)
    none = np.full(n, UNNUMBERED)
    names = [machines[i] for i in rng.integers(len(machines), size=n)]
    times: Any = START + 60.0 * np.arange(n)
    return Batch(names, times, values, np.arange(n), np.zeros(n, np.int64), none)


def judge(found: Scorer, batch: Batch, rows: Any = None, resident: int = 100) -> Scored:
    rows = np.arange(len(batch)) if rows is None else rows
    part = batch.select(rows)
    missing = found.residents.missing(part.machines)
    if len(found.residents) + len(missing) > resident:
        found.evict(len(found.residents), np.zeros(0, np.int64))
    found.admit(found.residents.missing(part.machines), {})
    return found.process(part, rows)


def named(batch: Batch, prefix: str) -> Any:
    return np.flatnonzero([machine.startswith(prefix) for machine in batch.machines])


def alerts(scored: Scored, detector: str) -> list[Any]:
    return [
        (alert.machine, alert.event, alert.position.offset, alert.score)
        for alert in scored.alerts
        if alert.detector == detector
    ]


def test_bound_detectors_score_as_in_topologies_of_their_own_and_others_not_at_all() -> None:
    batch = stream(3000)
    together = judge(scorer({"z": bound(Z, "pump-*"), "trees": bound(TREES, "fan-1", "fan-2")}), batch)
    for name, recipe, prefix in (("z", Z, "pump"), ("trees", TREES, "fan")):
        rows = named(batch, prefix)
        alone = judge(scorer({name: recipe}), batch, rows)
        np.testing.assert_array_equal(together.scores[name][rows], alone.scores[name])
        np.testing.assert_array_equal(together.thresholds[name][rows], alone.thresholds[name])
        assert alerts(together, name) == alerts(alone, name)
        others = np.setdiff1d(np.arange(3000), rows)
        assert np.isnan(together.scores[name][others]).all()
        assert np.isinf(together.thresholds[name][others]).all()
    assert alerts(together, "z")
    assert "valve" not in {alert.machine for alert in together.alerts}


def test_state_of_machines_that_are_not_scored_stays_as_it_began() -> None:
    found = scorer({"z": bound(Z, "pump-*")})
    judge(found, stream(500))
    fresh = scorer({"z": Z}).components(np.zeros(1, np.int64))
    for machine in ("fan-1", "valve"):
        rows = found.components(np.array([found.residents.find(machine)]))
        for name in ("model:z", "alert:z"):
            for key, column in rows[name].items():
                np.testing.assert_array_equal(column, fresh[name][key])


@pytest.mark.parametrize("combine", [None, Combination(), Combination(calibrate=False, method="max")])
def test_cuts_change_nothing(combine: Combination | None) -> None:
    def fresh() -> Scorer:
        detectors = {"z": bound(Z, "pump-*"), "trees": bound(TREES, "pump-1", "fan-*"), "all": TREES}
        calibration = Calibration(warmup=50, history=100)
        rule = AlertRule(probability=0.03, close_after=2)
        return scorer(detectors, calibration=calibration, combine=combine, alert=rule)

    batch, whole = stream(2000), judge(fresh(), stream(2000))
    rng = np.random.default_rng(4)
    cuts = np.sort(rng.choice(np.arange(1, 2000), 60, replace=False))
    found, pieces = fresh(), []
    for rows in np.split(np.arange(2000), cuts):
        pieces.append(judge(found, batch, rows))
    for name in whole.scores:
        np.testing.assert_array_equal(whole.scores[name], np.concatenate([p.scores[name] for p in pieces]))
    assert whole.alerts == [alert for piece in pieces for alert in piece.alerts]
    assert {"pump", "fan"} <= {
        alert.machine.split("-")[0] for alert in whole.alerts if alert.detector != "health"
    }


def test_combined_takes_the_detectors_that_score_a_machine() -> None:
    calibration = Calibration(warmup=50, history=100)
    settings: dict[str, Any] = {
        "calibration": calibration,
        "combine": Combination(method="max", calibrate=False),
        "alert": AlertRule(probability=0.03, close_after=2),
    }
    batch = stream(4000)
    both = {"z": bound(Z, "pump-*"), "trees": bound(TREES, "pump-*", "fan-*")}
    found = judge(scorer(both, **settings), batch)
    pumps, fans, valve = (named(batch, prefix) for prefix in ("pump", "fan", "valve"))
    unbound = judge(scorer({"z": Z, "trees": TREES}, **settings), batch, pumps)
    np.testing.assert_array_equal(found.scores["combined"][pumps], unbound.scores["combined"])
    np.testing.assert_array_equal(found.scores["combined"][fans], found.scores["trees"][fans])
    assert np.isnan(found.scores["z"][fans]).all()
    assert np.isnan(found.scores["combined"][valve]).all()
    by = {alert.machine[:3]: alert.model.digest for alert in found.alerts if alert.detector == "combined"}
    z, trees = online_info(Z).digest, online_info(TREES).digest
    assert by == {"pum": "+".join(sorted([z, trees])), "fan": trees}


def test_slot_that_another_machine_takes_over_is_bound_anew() -> None:
    batch = stream(600)
    found, scores = scorer({"z": bound(Z, "pump-*")}), []
    for rows in np.split(np.arange(600), 200):
        scores.append(judge(found, batch, rows, resident=2).scores["z"])
    scored = ~np.isnan(np.concatenate(scores))
    np.testing.assert_array_equal(np.flatnonzero(scored), named(batch, "pump"))


def test_careful_scoring_is_the_same() -> None:
    batch, recipes = stream(300), {"z": bound(Z, "pump-*"), "all": TREES}
    one, other = scorer(recipes), scorer(recipes)
    for found in (one, other):
        found.admit(found.residents.missing(batch.machines), {})
    plain = one.process(batch, np.arange(300))
    careful = other.process(batch, np.arange(300), careful=True)
    for name in recipes:
        np.testing.assert_array_equal(plain.scores[name], careful.scores[name])


def test_thousands_of_machines_of_two_types(tmp_path: Path) -> None:
    machines = tuple(f"{kind}-{i}" for i in range(3000) for kind in ("pump", "fan"))
    batch = stream(30_000, machines)
    found = judge(scorer({"z": bound(Z, "pump-*"), "trees": bound(TREES, "fan-*")}), batch, resident=10_000)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.scores["z"])), named(batch, "pump"))
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.scores["trees"])), named(batch, "fan"))
    one = named(batch, batch.machines[0])
    rows = one[[batch.machines[i] == batch.machines[0] for i in one]]
    recipes: dict[str, dict[str, Any]] = {"pump": {"z": Z}, "fan": {"trees": TREES}}
    recipe = recipes[batch.machines[0].split("-")[0]]
    [name] = recipe
    alone = judge(scorer(recipe), batch, rows)
    np.testing.assert_array_equal(found.scores[name][rows], alone.scores[name])


def test_alert_of_a_machine_that_is_not_bound_any_more_is_let_go() -> None:
    before = scorer({"z": Z})
    judge(before, stream(400, ("pump-1",)))
    values = np.full((3, 2), 90.0)
    fault = one_machine(values, 400)
    assert [alert.event for alert in before.process(fault, np.arange(400, 403)).alerts][:1] == ["opened"]
    state = before.components(np.array([0]))
    same, other = scorer({"z": bound(Z, "pump-*")}), scorer({"z": bound(Z, "fan-*")})
    for found in (same, other):
        found.admit(["pump-1"], state)
    assert (same.open_alerts(), other.open_alerts()) == ({"z": 1}, {"z": 0})
    assert Scorer.recipes(same._topology) == Scorer.recipes(before._topology)


def one_machine(values: Any, start: int) -> Batch:
    n = len(values)
    times: Any = START + 60.0 * np.arange(start, start + n)
    return Batch(["pump-1"] * n, times, values, np.arange(n), np.zeros(n, np.int64), np.full(n, UNNUMBERED))


def test_registry_model_scores_its_machines_live_and_the_metrics_count_them(tmp_path: Path) -> None:
    async def story() -> None:
        topology = Topology(
            name="plant",
            source=Source(sensors=(Sensor("a"), Sensor("b")), max_batch=64, linger=0.0, resident_machines=2),
            detectors={
                "scale": RegistryModel(model="models:/scale@champion", machines="m[01]"),
                "z": bound(Z, "m2", "m3"),
            },
            alert=AlertRule(close_after=2),
        )
        plant = Plant(tmp_path, topology, shelf=ScaleShelf())
        await plant.declare()
        await plant.publish(readings(300, machines=5))
        await plant.process(150)
        await plant.process(300)
        names = [machine for scored in plant.scored for machine in scored.batch.machines]
        scale = np.concatenate([scored.scores["scale"] for scored in plant.scored])
        expected = np.array([name in ("m0", "m1") for name in names])
        np.testing.assert_array_equal(~np.isnan(scale), expected)
        values = np.concatenate([scored.batch.values for scored in plant.scored])
        direct = Scale(1.0).score_learn(np.zeros(1, np.int64), values[expected], np.zeros(1))
        np.testing.assert_array_equal(scale[expected], direct)
        assert plant.value("mmlw_readings_scored_total", detector="scale") == expected.sum()
        assert {a.machine for a in await plant.alerts() if a.detector == "scale"} <= {"m0", "m1"}
        [told] = (await asked(plant))["predictions"]
        assert told["scores"].keys() == {"z"}

    async def asked(plant: Plant) -> dict[str, Any]:
        async with plant.running():
            return await plant.ask("predict", rows=[{"machine": "m3", "values": {"a": 1.0}}])

    run(story())


@pytest.mark.parametrize(
    ("machines", "senders", "problem"),
    [
        ("''", "['*']", "a pattern is empty"),
        ("['pump-*', ' ']", "['*']", "a pattern is empty"),
        ("'pump-[12'", "['*']", '"pump-[12" has a bracket without its other half'),
        ("pump-1", "['fan-*']", r'"pump-1" is no machine that may send (source.machines: fan-*)'),
        ("'pump-*'", "[fan-1, fan-2]", '"pump-*" is no machine that may send'),
        ("7", "['*']", "machines"),
    ],
)
def test_patterns_that_cannot_be_meant_are_told(
    tmp_path: Path, machines: str, senders: str, problem: str
) -> None:
    for spec in ("kind: adaptive_z", "model: 'models:/x@champion'"):
        (tmp_path / "t.yaml").write_text(
            f"name: t\nsource: {{sensors: [a], machines: {senders}}}\n"
            f"detectors:\n  z: {{{spec}, machines: {machines}}}\n"
        )
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "t.yaml")
        assert problem in str(caught.value)
        assert "detectors.z.machines" in str(caught.value)


def test_one_pattern_and_several_load_as_they_are_written(tmp_path: Path) -> None:
    topology = Topology(
        name="t",
        source=Source(sensors=(Sensor("a"),)),
        detectors={
            "z": msgspec.structs.replace(Z, machines="pump-*"),
            "model": RegistryModel(model="models:/x@y", machines=("fan-1", "fan-[23]")),
        },
    )
    (tmp_path / "t.yaml").write_text(dump_yaml(topology))
    assert load(tmp_path / "t.yaml") == topology
    assert "machines: pump-*" in dump_yaml(topology)
    assert [Binding("fan-[23]").matches(name) for name in ("fan-2", "fan-4", "Fan-2", "fan-22")] == [
        True,
        False,
        False,
        False,
    ]
