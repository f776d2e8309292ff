"""`detectors: auto` looks first, then takes the family that suits a machine, and says why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.several import KINDS, plant, told
from detectors import KNN, AdaptiveZ, Auto, LeftMatrixProfile
from detectors.acquaintance import Portrait
from detectors.base import Floats
from detectors.calibration import Calibration
from detectors.datasets import DATASETS
from detectors.quality import roc_auc
from stream.backtest import fresh_scorer
from stream.config import dump_yaml, load
from stream.errors import ConfigError
from stream.readings import Batch
from stream.rules import AlertRule
from stream.topology import Sensor, Source, Topology


def walk(n: int, seed: int) -> Floats:
    """Two sensors with a memory: autoregressive, correlation 0.9."""
    noise = np.random.default_rng(seed).normal(size=(n, 2))
    values = np.zeros((n, 2))
    for i in range(1, n):
        values[i] = 0.9 * values[i - 1] + noise[i]
    return values


def test_each_key_gets_the_family_that_suits_it() -> None:
    n = 600
    independent = np.random.default_rng(0).normal(size=(n, 2))
    values = np.empty((2 * n, 2))
    values[0::2], values[1::2] = walk(n, 1) + 1e6, independent - 1e6
    slots = np.tile([0, 1], n)
    model = Auto(look=200).build(("a", "b"))
    model.score_learn(slots[:200], values[:200], np.arange(200.0))
    assert model.explain(0) == "undecided: 100 of 200 readings seen"
    model.score_learn(slots[200:], values[200:], np.arange(200.0, 2.0 * n))
    assert model.explain(0).startswith(
        "mewma, adaptive_z, knn: readings follow from the one before (largest correlation 0."
    )
    assert model.explain(1).startswith("knn, mewma: no reading follows from the one before")


def test_switches_are_compared_with_examples_though_they_have_a_memory() -> None:
    switches = np.repeat(np.random.default_rng(7).integers(0, 4, (60, 3)), 10, axis=0).astype(np.float64)
    model = Auto(look=200).build(("a", "b", "level"))
    fine = np.c_[switches[:, :2], walk(600, 8)[:, 0]]
    model.score_learn(np.zeros(600, np.int64), fine, 60.0 * np.arange(600.0))
    model.score_learn(np.ones(600, np.int64), np.c_[switches[:, 0], walk(600, 9)], np.arange(600.0))
    assert model.explain(0).startswith("knn: 2 of 3 sensors are discrete (largest correlation 0.")
    assert model.explain(0).endswith("a reading each 1 min)")
    assert model.explain(1).startswith("mewma, adaptive_z, knn: readings follow")


def test_nothing_is_scored_before_it_is_decided() -> None:
    model = Auto(look=150).build(("a", "b"))
    values = np.random.default_rng(2).normal(size=(400, 2))
    values[100] += 50.0
    values[300] += 50.0
    scores = model.score_learn(np.zeros(400, np.int64), values, np.arange(400.0))
    assert not scores[:150].any()
    assert scores[300] == scores.max() > 1.0


def test_shift_of_sensors_with_a_memory_is_found_and_explained() -> None:
    values = walk(1500, 3)
    values[1200:, 1] += 20.0
    model = Auto(look=400).build(("a", "b"))
    scores = model.score_learn(np.zeros(1500, np.int64), values, np.arange(1500.0))
    assert (scores[1200:1260] >= 1.0).mean() > 0.5
    assert (scores[400:1200] >= 1.0).mean() < 0.02
    shares, expected = model.contributions(np.array([1260, 10]))
    assert shares[0, 1] > 0.8
    assert abs(expected[0, 1]) < 8.0
    assert not shares[1].any()


def test_shuttle_is_taken_for_readings_without_a_memory() -> None:
    data = DATASETS["shuttle"]()
    values = np.ascontiguousarray(data.frame.to_numpy(dtype=np.float64)[:8000])
    model = Auto().build(tuple(map(str, data.frame.columns)))
    scores = model.score_learn(np.zeros(8000, np.int64), values, np.arange(8000.0))
    assert model.explain(0).startswith("knn")
    assert roc_auc(data.labels[400:8000], scores[400:]) > 0.98


def test_one_sensor_is_compared_with_its_past() -> None:
    data = DATASETS["water_flow"]()
    values = data.frame.to_numpy(dtype=np.float64)
    model = Auto().build(("flow",))
    scores = model.score_learn(np.zeros(len(values), np.int64), values, np.arange(float(len(values))))
    said = "one sensor, a reading each 1 s: stretches of 1, 24, 96 readings are compared with its past"
    assert model.explain(0).startswith(f"left_matrix_profile: {said}; the profile of its day is judged in ")
    assert roc_auc(data.labels[400:], scores[400:]) > 0.8


def test_score_of_one_sensor_counts_decades_beyond_the_threshold() -> None:
    rng = np.random.default_rng(5)
    values = np.cumsum(rng.normal(size=1500)) * 0.1 + rng.normal(size=1500)
    values[1200] += 40.0
    slots, times = np.zeros(1500, np.int64), np.arange(1500.0)
    scores = Auto().build(("a",)).score_learn(slots, values[:, None], times)
    tail = Calibration(history=20_000, warmup=250, quantile=0.98, largest_shape=0.0, repeats="count")
    surprises = []
    for length, neighbours, history in ((1, 1, 8000), (24, 2, 4000), (96, 2, 4000)):
        stretch = LeftMatrixProfile(length=length, neighbours=neighbours, history=history).build(("a",))
        scored = stretch.score_learn(slots, values[:, None], times)
        warm = np.arange(1500) >= stretch.warmup_readings
        surprises.append(tail.build().score_learn(slots, scored, warm=warm))
    limit = 0.77 + 0.9 * np.log10(np.maximum(np.arange(1.0, 1501.0), 200.0) / 1000.0)
    mean = np.mean(surprises, axis=0)
    assert not scores[:250].any()
    assert scores[1200] == np.max(scores) > 1.5
    np.testing.assert_allclose(scores, np.where(mean < limit, mean / limit, 1.0 + mean - limit), rtol=1e-12)


def test_reason_of_one_sensor_is_its_course_where_that_is_off_and_else_its_value() -> None:
    rng = np.random.default_rng(7)
    values = 50.0 + 5.0 * np.sin(np.arange(3000) / 8.0) + rng.normal(scale=0.2, size=3000)
    values[1508:1568] = 50.0 + rng.normal(scale=0.2, size=60)  # from where it crosses 50: no value is new
    values[2500] = 90.0
    topology = Topology(name="one", source=Source(sensors=(Sensor("level"),)), detectors="auto")  # type: ignore[arg-type]
    scorer = fresh_scorer(topology)
    scorer.admit(["m"], {})
    rows = np.arange(3000)
    times = np.asarray(1.7e9 + 60.0 * rows, np.float64)
    batch = Batch(["m"] * 3000, times, values[:, None], rows, np.zeros_like(rows), np.full(3000, -1))
    alerts = [alert for alert in scorer.process(batch, rows).alerts if alert.event == "opened"]
    told = {round((alert.window.times[-1] - 1.7e9) / 60.0): alert for alert in alerts}
    course = next(alert for at, alert in told.items() if 1500 < at < 1600)
    stretch = course.contributions[0].stretch
    assert stretch is not None
    assert stretch.readings in (24, 96)
    assert f"ran as at most once before over its last {stretch.readings} readings (2023-11-1" in course.reason
    assert "level is at 90, where it never was: the nearest value before was 5" in told[2500].reason


def test_one_sensor_is_not_called_undecided_once_it_is_scored() -> None:
    model = Auto().build(("a",))
    values = np.random.default_rng(6).normal(size=(300, 1))
    values[290] += 40.0
    scores = model.score_learn(np.zeros(300, np.int64), values, np.arange(300.0))
    assert scores[290] > 1.0
    told = "one sensor, compared with its past from reading 251 on: 300 of 400 readings seen"
    assert model.explain(0) == told


def test_escalation_needs_a_calibration_or_auto() -> None:
    source = Source(sensors=(Sensor("a"),))
    rule = AlertRule(escalation=1.0)
    assert Topology(name="t", source=source, detectors={"any": Auto()}, alert=rule).alert == rule
    with pytest.raises(ValueError, match="escalation needs calibrated scores"):
        Topology(name="t", source=source, detectors={"z": AdaptiveZ()}, alert=rule)


def test_one_sensor_that_never_moved_is_told_when_it_does() -> None:
    values = np.full((3000, 1), 5.0)
    values[2000:] = 9.0
    scores = Auto().build(("a",)).score_learn(np.zeros(3000, np.int64), values, np.arange(3000.0))
    assert not scores[:2000].any()
    assert scores[2000] > 1.0


def test_the_word_stands_for_a_detector_and_the_rule_that_suits_it() -> None:
    one = Topology(name="t", source=Source(sensors=(Sensor("a"),)), detectors="auto")  # type: ignore[arg-type]
    two = Topology(name="t", source=Source(sensors=(Sensor("a"), Sensor("b"))), detectors="auto")  # type: ignore[arg-type]
    assert one.detectors == two.detectors == {"auto": Auto()}
    assert (one.alert.close_after, one.alert.cooldown_readings, one.alert.escalation) == (0, 120, 1.5)
    assert (two.alert.hold, two.alert.at_once, two.alert.close_after) == (3, 3.0, 10)
    assert "kind: auto" in dump_yaml(two)


@pytest.mark.parametrize(
    ("stated", "sensors", "holds"),
    [
        ({"severities": {"info": 1.0, "bad": 3.0}}, 1, (1, math.inf, 0, 0.1, 120, 1.5)),
        ({"min_deviation": 0.1}, 3, (3, 3.0, 10, 0.2, 0, 0.0)),
        ({"hold": 7}, 3, (7, 3.0, 10, 0.2, 0, 0.0)),
        ({"hold": 1}, 3, (1, math.inf, 10, 0.2, 0, 0.0)),
        ({"at_once": None}, 3, (3, math.inf, 10, 0.2, 0, 0.0)),
        ({"close_after": 3, "cooldown_readings": 0}, 1, (1, math.inf, 3, 0.1, 0, 1.5)),
        ({"escalation": 0.0, "hysteresis": 0.1}, 3, (3, 3.0, 10, 0.1, 0, 0.0)),
    ],
)
def test_what_an_alert_states_beside_the_word_stays_and_the_rest_is_automatic(
    tmp_path: Path, stated: dict[str, Any], sensors: int, holds: tuple[Any, ...]
) -> None:
    plain = {"name": "t", "source": {"sensors": list("abc"[:sensors])}, "detectors": "auto", "alert": stated}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    found = load(tmp_path / "t.yaml")
    rule = found.alert
    each = rule.hold, rule.at_once, rule.close_after, rule.hysteresis, rule.cooldown_readings, rule.escalation
    assert each == holds
    assert all(getattr(rule, name) == value for name, value in stated.items() if value is not None)
    (tmp_path / "again.yaml").write_text(dump_yaml(found))
    assert load(tmp_path / "again.yaml") == found
    given = AlertRule(**stated)
    assert Topology(name="t", source=found.source, detectors="auto", alert=given) == found  # type: ignore[arg-type]


def test_what_the_automatic_rule_does_not_admit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("name: t\nsource: {sensors: [a, b]}\ndetectors: auto\nalert: {within: 2}\n")
    with pytest.raises(ConfigError, match=r"t.yaml:4: alert: with what detectors: auto chooses .*state both"):
        load(path)


@pytest.mark.parametrize(
    ("interval", "pace"),
    [
        (60.0, "a reading each 1 min"),
        (-7200.0, "a reading each 2 h"),
        (0.25, "a reading each 0.25 s"),
        (0.0, "readings at one time"),
        (np.nan, "at a pace not known"),
    ],
)
def test_pace_of_any_interval_can_be_said(interval: float, pace: str) -> None:
    assert Portrait(400, interval, 0.5, 0).pace == pace


def test_newest_first_is_explained_all_the_same() -> None:
    model = Auto(look=30).build(("a", "b"))
    model.score_learn(np.zeros(40, np.int64), walk(40, 4), 60.0 * np.arange(40.0)[::-1])
    assert "a reading each 1 min" in model.explain(0)


@pytest.mark.parametrize(("look", "declared"), [(400, 250), (100, 100), (30, 50)])
def test_warm_up_of_one_sensor_is_that_of_its_calibration(look: int, declared: int) -> None:
    model = Auto(look=look).build(("a",))
    assert model.warmup_readings == declared
    values = np.random.default_rng(6).normal(size=(declared + 10, 1))
    scores = model.score_learn(np.zeros(len(values), np.int64), values, np.arange(float(len(values))))
    assert not scores[:declared].any()
    assert scores[declared : declared + 5].any()
    assert Auto(look=look).build(("a", "b")).warmup_readings == look


def test_short_fault_of_sensors_with_a_memory_is_found_whatever_its_size() -> None:
    for size in (35.0, 2300.0):
        values = walk(1500, 12)
        values[1200:1205, 1] += size
        for cuts in ([1500], [1202, 298]):
            model, scores, at = Auto().build(("a", "b")), [], 0
            for n in cuts:
                rows = slice(at, at + n)
                times = np.arange(float(at), float(at + n))
                scores.append(model.score_learn(np.zeros(n, np.int64), values[rows], times))
                at += n
            whole = np.concatenate(scores)
            assert model.explain(0).startswith("mewma, adaptive_z, knn: readings follow")
            assert (whole[1200:1203] >= 1.0).all(), "three in a row: the rule's hold is met"
            assert not (whole[400:1200] >= 1.0).any()
            shares, expected = model.contributions(np.array([1202 if len(cuts) == 1 else 0]))
            assert shares[0, 1] > 0.8
            assert abs(expected[0, 1]) < 8.0


def test_of_several_sensors_one_reading_far_out_opens_an_alert_and_two_less_far_do_not() -> None:
    values = np.random.default_rng(0).normal(50.0, 1.0, (1200, 3))
    values[600, 1] += 40.0
    values[900:902, 2] += 6.0
    source = Source(sensors=(Sensor("a"), Sensor("b"), Sensor("c")))
    scorer = fresh_scorer(Topology(name="t", source=source, detectors="auto"))  # type: ignore[arg-type]
    scorer.admit(["m"], {})
    rows = np.arange(1200)
    batch = Batch(
        ["m"] * 1200,
        np.asarray(rows * 60.0, np.float64),
        values,
        rows,
        np.zeros(1200, np.int64),
        np.full(1200, -1),
    )
    opened = [alert for alert in scorer.process(batch, rows).alerts if alert.event == "opened"]
    assert [(alert.position.offset, alert.contributions[0].sensor) for alert in opened] == [(600, "b")]


@pytest.mark.parametrize(
    ("kind", "sigmas"), [(kind, 6.0) for kind in KINDS] + [("noise", 3.0), ("memory", 3.0)]
)
def test_lasting_fault_of_one_of_several_sensors_is_found_within_a_few_hundred_readings(
    kind: str, sigmas: float
) -> None:
    found = 0
    for seed in range(100, 106):
        values = plant(kind, 5500, seed)
        values[4000:, 1] += sigmas * values[:4000, 1].std()
        open_ = told(values).open
        found += bool(open_[4000:4400].any())
    assert found >= 4, f"{found} of 6"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "set points"])
def test_healthy_sensors_raise_no_more_than_an_alert_in_10000_readings(kind: str) -> None:
    alerts = [alert for seed in range(100, 104) for alert in told(plant(kind, 10_400, seed)).alerts]
    assert len(alerts) <= 4, alerts


@pytest.mark.parametrize("kind", ["noise", "memory"])
@pytest.mark.parametrize("level", [1.0, 5000.0])
def test_constant_sensor_that_moves_is_found_and_in_the_end_normal(kind: str, level: float) -> None:
    values = plant(kind, 6000, 1)
    values[:, 2] = 0.0
    values[3000:, 2] = level
    alerts, open_ = told(values)
    assert len(alerts) == 1
    assert 3000 <= alerts[0] < 3020
    assert not open_[5500:].any(), "accepted after a day (288 readings), then learned"


def test_rounding_of_a_constant_sensor_is_no_fault() -> None:
    values = plant("memory", 4000, 2)
    values[:, 2] = 20.1
    values[2000:, 2] *= 1.0 + 1e-15 * np.random.default_rng(0).integers(-3, 4, 2000)
    assert told(values).alerts == []


def test_constant_sensor_that_begins_to_count_or_to_flicker_is_not_a_fault_for_ever() -> None:
    for moves in (np.random.default_rng(3).integers(0, 2, 5000), np.arange(5000) // 20):
        values = plant("memory", 7000, 4)
        values[:, 2] = 1000.0
        values[2000:, 2] += moves
        alerts, open_ = told(values)
        assert len(alerts) <= 2
        assert not open_[5000:].any()


def test_machine_that_is_switched_on_during_the_look_is_no_fault() -> None:
    values = plant("switched", 2000, 5)
    assert told(np.r_[values[:60], values[:60], values[60:]]).alerts == []


def test_chart_tells_nothing_of_readings_without_a_memory_below_its_limit() -> None:
    values = plant("noise", 1500, 6)
    slots, times = np.zeros(1500, np.int64), np.arange(1500.0)
    scores = Auto().build(("a", "b", "c")).score_learn(slots, values, times)
    alone = KNN(healthy=400).build(("a", "b", "c")).score_learn(slots, values, times) / 5.0
    np.testing.assert_array_equal(scores[400:], alone[400:])


def test_state_with_nine_sensors_stays_below_twenty_kilobytes() -> None:
    model = Auto().build(tuple("abcdefghi"))
    model.score_learn(np.zeros(1, np.int64), np.zeros((1, 9)), np.zeros(1))
    assert sum(column.nbytes for column in model.snapshot(np.array([0])).values()) < 20_000
