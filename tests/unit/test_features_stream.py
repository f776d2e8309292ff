"""Features in a topology: files, what detectors are shown, alerts, checkpoints, live as in the backtest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from msgspec import structs

from detectors import AdaptiveZ, Calibration, HalfSpaceTrees
from detectors.features import FEATURES as FEATURE_KINDS
from detectors.features import Calendar, Correlation, Rate, Ratio, Rolling
from stream.backtest import backtest, fresh_scorer
from stream.checkpoint import Checkpoint
from stream.cli import cli
from stream.config import dump_yaml, load
from stream.graph import mermaid
from stream.histories import read_history
from stream.rules import AlertRule, Combination
from stream.scorer import Scorer
from stream.topology import Sensor, Source, Topology
from tests.aio import run
from tests.plant import Plant
from tests.unit.test_config import problems
from tests.unit.test_deciding_live import START, N, messages, values
from tests.unit.test_ensemble import judge, quiet, scorer

YAML = """
name: pumps
source: {sensors: [pressure, flow, accel]}
features:
  flow_mean:      {of: flow, rolling: mean, window: 60}
  flow_yesterday: {of: flow, lag: 24}
  step:           {of: flow, change: 1}
  pressure_rate:  {of: pressure, rate: per_second}
  pulses:         {of: accel, rate: per_hour, wraps_at: 65536}
  vibration_band: {of: accel, band: [10, 50], window: 256, sample_rate: 100}
  crossings:      {of: accel, crossings: mean, window: 100}
  head:           {ratio: [pressure, flow]}
  gap:            {difference: [flow, flow_mean]}
  power:          {product: [pressure, flow]}
  total:          {sum: [pressure, flow, accel]}
  together:       {correlation: [pressure, flow], window: 50}
  hour:           {calendar: hour, zone: Europe/Berlin}
detectors:
  level: {kind: adaptive_z, inputs: [flow, flow_mean, hour]}
  all:   {kind: half_space_trees}
  type:  {model: models:/pumps@champion, inputs: [head, gap], fit: {kind: pca}}
"""
PYTHON = """
from detectors import AdaptiveZ, HalfSpaceTrees, PCA
from detectors.features import (
    Band, Calendar, Change, Correlation, Crossings, Difference, Lag, Product, Rate, Ratio, Rolling, Sum
)
from stream.topology import RegistryModel, Source, Topology

topology = Topology(
    name="pumps",
    source=Source(sensors=("pressure", "flow", "accel")),
    features={
        "flow_mean": Rolling(of="flow", rolling="mean", window=60),
        "flow_yesterday": Lag(of="flow", lag=24),
        "step": Change(of="flow", change=1),
        "pressure_rate": Rate(of="pressure", rate="per_second"),
        "pulses": Rate(of="accel", rate="per_hour", wraps_at=65536),
        "vibration_band": Band(of="accel", band=[10, 50], window=256, sample_rate=100),
        "crossings": Crossings(of="accel", crossings="mean", window=100),
        "head": Ratio(ratio=["pressure", "flow"]),
        "gap": Difference(difference=("flow", "flow_mean")),
        "power": Product(product=("pressure", "flow")),
        "total": Sum(sum=("pressure", "flow", "accel")),
        "together": Correlation(correlation=("pressure", "flow"), window=50),
        "hour": Calendar(calendar="hour", zone="Europe/Berlin"),
    },
    detectors={
        "level": AdaptiveZ(inputs=("flow", "flow_mean", "hour")),
        "all": HalfSpaceTrees(),
        "type": RegistryModel(model="models:/pumps@champion", inputs=("head", "gap"), fit=PCA()),
    },
)
"""


def test_yaml_python_and_a_round_trip_give_equal_objects(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    (tmp_path / "t.py").write_text(PYTHON)
    topology = load(tmp_path / "t.yaml")
    assert load(tmp_path / "t.py") == topology
    (tmp_path / "copy.yaml").write_text(dump_yaml(topology))
    assert load(tmp_path / "copy.yaml") == topology
    assert topology.columns[-3:] == ("together", "hour_sin", "hour_cos")
    assert topology.inputs("level") == ("flow", "flow_mean", "hour_sin", "hour_cos")
    assert topology.inputs("type") == ("head", "gap")
    assert topology.inputs("all") == topology.columns


def test_every_problem_is_reported_with_line_place_and_remedy(tmp_path: Path) -> None:
    text = """\
name: pumps
source: {sensors: [flow, pressure]}
features:
  Mean: {of: flow, rolling: mean, window: 60}
  typo: {of: flwo, lag: 3}
  what: {of: flow, roling: mean, window: 60}
  kind: {of: flow, rolling: medan, window: 60}
  both: {of: flow, rolling: mean, lag: 3, window: 60}
  none: 5
  short: {of: flow, rolling: mean, window: 1}
  size: {of: flow, rolling: mean}
  early: {of: later, lag: 1}
  later: {of: flow, lag: 1}
  pressure: {of: flow, lag: 1}
  hour: {calendar: hour, zone: Europe/Berlan}
  band: {of: flow, band: [10, 80], window: 256, sample_rate: 100}
  three: {ratio: [flow, pressure, flow]}
detectors:
  z: {kind: adaptive_z, inputs: [flow, flow, pressur]}
"""
    expected = [
        ":4: features.Mean: a name must be lower-case",
        ':12: features.early: is made of "later", which stands below it; write that first',
        ":6: features.what: say exactly one of rolling, lag, change,",
        ":7: features.kind.rolling: expected one of mean, std, min, max, median, range, rms, skew, kurtosis, slope; "
        'found "medan". Did you mean "median"?',
        ":8: features.both: say exactly one of",
        ":9: features.none: expected settings (a mapping), found a number",
        ":10: features.short.window: Expected int >= 2",
        ':11: features.size: the setting "window" is missing',
        ':15: features.hour.zone: "Europe/Berlan" is not a time zone. Did you mean "Europe/Berlin"?',
        ":16: features.band.band: 100 values a second (sample_rate) show nothing above 50 Hz",
        ":17: features.three.ratio: takes two sensors",
        ':5: features.typo: "flwo" is neither a sensor nor a feature. Did you mean "flow"?',
        ':14: features.pressure: "pressure" is the name of a sensor already; choose another',
        ':19: detectors.z.inputs: "pressur" is neither a sensor nor a feature. Did you mean "pressure"?',
        ":19: detectors.z.inputs: named twice: flow",
    ]
    found = problems(tmp_path, text)
    assert any(":6: features.what" in line and line.endswith('Did you mean "rolling"?') for line in found)
    for line in expected:
        assert any(item.startswith(line) for item in found), f"{line} not in {found}"
    assert len(found) == len(expected), found


def test_what_reads_a_feature_below_it_or_an_unknown_input_is_a_problem(tmp_path: Path) -> None:
    text = """\
name: pumps
source: {sensors: [flow, pressure]}
features:
  early: {of: later, lag: 1}
  later: {of: flow, lag: 1}
  itself: {sum: [itself, flow]}
  hour: {calendar: hour}
  hour_sin: {of: flow, lag: 2}
  flow: {calendar: weekday}
  clock: {of: hour, lag: 2}
detectors:
  z: {kind: adaptive_z, inputs: [flow, pressur]}
  y: {kind: adaptive_z, inputs: [hour_sine]}
  type: {model: models:/x@y, inputs: [latre]}
calibration: {method: evt}
"""
    assert problems(tmp_path, text) == [
        ':4: features.early: is made of "later", which stands below it; write that first',
        ":6: features.itself: is made of itself",
        ':8: features.hour_sin: "hour_sin" is the name of the feature hour already; choose another',
        ':9: features.flow: "flow" is the name of a sensor already; choose another',
        ':10: features.clock: is made of "hour", which gives hour_sin and hour_cos; take one of them',
        ':12: detectors.z.inputs: "pressur" is neither a sensor nor a feature. Did you mean "pressure"?',
        ':13: detectors.y.inputs: "hour_sine" is neither a sensor nor a feature. Did you mean "hour_sin"?',
        ':14: detectors.type.inputs: "latre" is neither a sensor nor a feature. Did you mean "later"?',
    ]


def test_no_crash_where_auto_stands_beside_another_problem(tmp_path: Path) -> None:
    text = "name: X\nsource: {sensors: [a]}\ndetectors: auto\ncalibration: {method: evt}\n"
    assert [line.split(" ")[1] for line in problems(tmp_path, text)] == ["name:"]


def test_documented_features_are_all_there_and_the_example_is_sound(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "features.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "t.yaml").write_text("name: pumps\n" + example)
    assert len(load(tmp_path / "t.yaml").features) == 6
    assert all(f"`{kind}: " in text for kind in FEATURE_KINDS)


def test_check_and_graph_tell_of_features(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    told = CliRunner().invoke(cli, ["check", str(tmp_path / "t.yaml")]).output
    assert "sound (3 sensors, 13 features, 3 detectors)" in told
    drawn = mermaid(load(tmp_path / "t.yaml"))
    assert 'decode --> features["13 features<br/>flow_mean, flow_yesterday' in drawn
    assert 'features --> d0["level' in drawn
    assert 'features --> d2[["type' in drawn
    plain = structs.replace(load(tmp_path / "t.yaml"), detectors={"z": AdaptiveZ(inputs=("flow",))})
    assert 'decode --> d0["z' in mermaid(plain)


FEATURES: dict[str, Any] = {
    "head": Ratio(ratio=("a", "b")),
    "a_mean": Rolling(of="a", rolling="mean", window=5),
    "a_rate": Rate(of="a", rate="per_second"),
}


def test_detector_sees_its_inputs_in_its_order_and_alerts_name_them() -> None:
    found = scorer(
        features=FEATURES, detectors={"z": AdaptiveZ(warmup=20, half_life=50, inputs=("head", "b"))}
    )
    rows = quiet(101)
    rows[100, 0] += 10.0  # b is as ever: only the ratio tells
    [alert] = judge(found, rows).alerts
    top = alert.contributions[0]
    assert (top.sensor, top.value) == ("head", rows[100, 0] / rows[100, 1])
    assert top.share > 0.99
    assert top.expected == pytest.approx(2.0, rel=0.05)
    assert {reason.sensor for reason in alert.contributions} == {"a", "b", *FEATURES}
    shares = {reason.sensor: (reason.share, reason.expected) for reason in alert.contributions}
    assert shares["a"] == shares["a_rate"] == (0.0, None)
    assert sum(abs(reason.share) for reason in alert.contributions) == pytest.approx(1.0)
    assert list(alert.window.values) == ["a", "b"]
    assert "head is high at" in alert.reason

    model = AdaptiveZ(warmup=20, half_life=50).build(("head", "b"))
    shown = np.column_stack([rows[:, 0] / rows[:, 1], rows[:, 1]])
    times = np.zeros(101)
    expected = model.score_learn(np.zeros(100, np.int64), shown[:100], times[:100])
    again = judge(
        scorer(features=FEATURES, detectors={"z": AdaptiveZ(warmup=20, half_life=50, inputs=("head", "b"))}),
        rows,
    )
    np.testing.assert_array_equal(again.scores["z"][:100], expected)


def test_detectors_that_decide_together_have_their_reasons_put_together() -> None:
    found = scorer(
        features=FEATURES,
        detectors={
            "one": AdaptiveZ(warmup=20, half_life=50, inputs=("head", "b")),
            "two": AdaptiveZ(warmup=20, half_life=50, inputs=("b", "a_mean")),
        },
        calibration=Calibration(warmup=60),
        combine=Combination(method="max"),
        alert=AlertRule(probability=1e-3),
    )
    rows = quiet(301)
    rows[300, 0] += 10.0
    alert = judge(found, rows).alerts[-1]
    reasons = {reason.sensor: reason for reason in alert.contributions}
    assert set(reasons) == {"a", "b", *FEATURES}
    assert reasons["head"].share > 0
    assert reasons["a_mean"].share > 0
    assert reasons["head"].expected == pytest.approx(2.0, rel=0.05)
    assert reasons["a_mean"].expected == pytest.approx(10.0, rel=0.05)
    assert reasons["b"].expected == pytest.approx(5.0, rel=0.05)
    assert reasons["a"].expected is None
    assert sum(abs(reason.share) for reason in alert.contributions) == pytest.approx(1.0)


def test_least_deviations_are_those_of_the_sensors_and_never_of_a_feature() -> None:
    sensors = (Sensor("a", min_deviation=5.0), Sensor("b", min_deviation=5.0))
    rows = quiet(101)
    rows[100, 1] += 3.0  # less than 5: small for b, but not for what is made of it

    def opened(*inputs: str) -> int:
        recipe = AdaptiveZ(warmup=20, half_life=50, inputs=inputs)
        found = scorer(sensors=sensors, features=FEATURES, detectors={"z": recipe})
        return len(judge(found, rows).alerts)

    assert opened("b", "a") == 0
    assert opened("head") == 1


def test_sentence_has_the_unit_of_what_a_feature_is_made_of() -> None:
    sensors = (Sensor("a", unit="bar"), Sensor("b"))
    rows = quiet(101)
    rows[100, 0] += 30.0
    for name, unit in (("a_mean", " bar"), ("head", "")):
        recipe = AdaptiveZ(warmup=20, half_life=50, inputs=(name,))
        [alert] = judge(scorer(sensors=sensors, features=FEATURES, detectors={"z": recipe}), rows).alerts
        assert re.match(rf"{name} is high at [0-9.]+{unit}, expected about", alert.reason)


def test_alert_opens_on_a_feature_while_others_cannot_be_computed_yet() -> None:
    features = {"slow": Rolling(of="a", rolling="mean", window=5000), "day": Calendar(calendar="weekend")}
    found = scorer(features=features)
    rows = quiet(101)
    rows[100] += 10.0
    [alert] = judge(found, rows).alerts
    values = {reason.sensor: reason.value for reason in alert.contributions}
    assert values["slow"] is None
    assert values["day"] in (0.0, 1.0)


def test_state_has_another_name_where_a_feature_that_is_seen_changes() -> None:
    def recipes(window: int, *inputs: str) -> dict[str, str]:
        features = {
            "m": Rolling(of="a", rolling="mean", window=window),
            "other": Rate(of="b", rate="per_day"),
        }
        return Scorer.recipes(
            Topology(
                name="t",
                source=Source(sensors=(Sensor("a"), Sensor("b"))),
                features=features,
                detectors={"z": AdaptiveZ(inputs=inputs)},
            )
        )

    for inputs, changes in (((), True), (("a", "m"), True), (("a", "other"), False)):
        one, two = recipes(5, *inputs), recipes(6, *inputs)
        assert one["features"] != two["features"]
        assert (one["model:z"] != two["model:z"]) is changes
    plain = Topology(name="t", source=Source(sensors=(Sensor("a"),)), detectors={"z": AdaptiveZ()})
    assert "features" not in Scorer.recipes(plain)


def plant_topology(window: int = 8) -> Topology:
    return Topology(
        name="plant",
        source=Source(sensors=(Sensor("a"), Sensor("b"))),
        features={
            **FEATURES,
            "spread": Rolling(of="a", rolling="std", window=window),
            "together": Correlation(correlation=("a", "b"), window=12),
            "hour": Calendar(calendar="hour", zone="Europe/Berlin"),
        },
        detectors={
            "level": AdaptiveZ(warmup=20, half_life=50, inputs=("spread", "a_mean", "head")),
            "trees": HalfSpaceTrees(n_trees=5, window_size=50, threshold=0.75),
        },
        alert=AlertRule(close_after=2),
    )


async def lived(plant: Plant, parts: int) -> Plant:
    await plant.declare()
    sent = messages()
    for part in np.array_split(np.arange(N), parts):
        await plant.publish([sent[i] for i in part])
        await plant.process(int(part[-1]) + 1)
    return plant


def test_backtest_gives_the_scores_and_alerts_of_a_worker_that_was_restarted(tmp_path: Path) -> None:
    frame = pd.DataFrame(values(), columns=["a", "b"])
    frame.insert(0, "time", pd.to_datetime(START + 60.0 * np.arange(N), unit="s"))
    frame.to_csv(tmp_path / "m1.csv", index=False, float_format="%.17g")
    plant = Plant(tmp_path / "live", plant_topology())
    past = backtest(fresh_scorer(plant.topology), read_history(tmp_path / "m1.csv", plant.topology))

    async def story() -> None:
        await lived(plant, parts=5)
        assert await plant.alerts() == past.alerts

    run(story())
    live = np.concatenate([scored.scores["level"] for scored in plant.scored])
    assert len(live) == N
    again = fresh_scorer(
        structs.replace(plant.topology, detectors={"level": plant.topology.detectors["level"]})
    )
    only = backtest(again, read_history(tmp_path / "m1.csv", plant.topology))
    np.testing.assert_array_equal(live, only.scores)
    named = {alert.contributions[0].sensor for alert in past.alerts if alert.detector == "level"}
    assert named & {"spread", "a_mean", "head"}


def test_changed_feature_forgets_what_was_computed_with_the_old_one(tmp_path: Path) -> None:
    async def story(plant: Plant) -> None:
        await plant.declare()
        await plant.publish(messages()[:100])
        await plant.process(100)

    plant = Plant(tmp_path, plant_topology())
    run(story(plant))
    for window, forgotten in ((8, ()), (9, ("features", "kin", "model:level", "model:trees"))):
        store = Checkpoint(tmp_path / "plant.checkpoint", "plant", Scorer.recipes(plant_topology(window)))
        assert store.load().forgotten == forgotten
        store.close()

    async def goes_on() -> None:
        other = Plant(tmp_path, plant_topology(9), server=plant.server)
        await other.publish(messages()[100:])
        await other.process(N)
        assert len(np.concatenate([scored.offsets for scored in other.scored])) == N - 100

    run(goes_on())


def test_batch_after_batch_is_as_reading_after_reading() -> None:
    """Narrow and careful ways of the scorer compute features but once."""
    topology = plant_topology()
    rows = values()
    history = pd.DataFrame(rows, columns=["a", "b"])
    from tests.unit.test_ensemble import batch

    whole, one = fresh_scorer(topology), fresh_scorer(topology)
    for found in (whole, one):
        found.admit(["m"], {})
    offsets = np.arange(len(history))
    scored = whole.process(batch(rows), offsets)
    careful = one.process(batch(rows), offsets, careful=True)
    assert scored.alerts == careful.alerts
    for name in scored.scores:
        np.testing.assert_array_equal(scored.scores[name], careful.scores[name])
    state = (found.components(np.array([0]))["features"] for found in (whole, one))
    for left, right in zip(*(rows.values() for rows in state), strict=True):
        np.testing.assert_array_equal(left, right)
