"""What is learned while an alert is open, and how several detectors decide together."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from benchmarks.acceptance import lasted
from detectors import (
    KNN,
    LODA,
    MEWMA,
    AdaptiveZ,
    HalfSpaceTrees,
    LeftMatrixProfile,
    Mahalanobis,
    RandomCutForest,
)
from detectors.base import Detector, Floats
from detectors.calibration import Calibration
from detectors.registry import ONLINE
from stream.alerts import alert_message
from stream.arrivals import UNNUMBERED
from stream.backtest import fresh_scorer
from stream.readings import Batch
from stream.recipes import online_info
from stream.rules import AlertRule, Combination, Learning, Maintenance
from stream.scorer import Scored, Scorer
from stream.topology import Sensor, Source, Topology

START = 1_700_000_000.0
MINUTE = 60.0
SENSORS = (Sensor("a"), Sensor("b"))


def scorer(**settings: Any) -> Scorer:
    recipes = settings.pop("detectors", {"z": AdaptiveZ(warmup=20, half_life=50)})
    sensors = settings.pop("sensors", SENSORS)
    topology = Topology(name="t", source=Source(sensors=sensors), detectors=recipes, **settings)
    models = {name: (spec.build(topology.inputs(name)), online_info(spec)) for name, spec in recipes.items()}
    return Scorer(topology, models)


def batch(values: Floats, start: int = 0, machine: str = "m") -> Batch:
    n = len(values)
    times = START + MINUTE * np.arange(start, start + n, dtype=np.float64)
    none = np.full(n, UNNUMBERED)
    return Batch([machine] * n, times, values, np.arange(n), np.zeros(n, np.int64), none)


def judge(found: Scorer, values: Floats, start: int = 0, machine: str = "m") -> Scored:
    found.admit(found.residents.missing([machine]), {})
    return found.process(batch(values, start, machine), start + np.arange(len(values)))


def quiet(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal([10.0, 5.0], [0.1, 0.1], (n, 2))


def events(scored: Scored) -> list[tuple[int, str]]:
    return [(alert.position.offset, alert.event) for alert in scored.alerts]


FAULT = np.array([3.0, 0.0])


def test_fault_does_not_become_normal_while_its_alert_is_open() -> None:
    protected, learning = scorer(), scorer(learning=Learning(while_open=True))
    for found in (protected, learning):
        judge(found, quiet(100))
    ten_hours = quiet(600, 1) + FAULT
    assert events(judge(protected, ten_hours, 100)) == [(100, "opened")]
    assert "closed" in {event for _, event in events(judge(learning, ten_hours, 100))}
    back = events(judge(protected, quiet(5, 2), 700))
    assert back == [(702, "closed")], "and the machine's own normal is still known"


def test_regime_accepted_after_a_time_is_learned_then_and_its_alert_closes_later() -> None:
    """An hour is 60 readings here; a chart begins anew after 200 more that were accepted."""
    quick, slow = lasted("adaptive_z", 10.0), lasted("mewma", 10.0)
    assert quick is not None
    assert slow is not None
    assert 60 < quick < 200
    assert 60 + 200 <= slow < 60 + 300


def test_alert_open_for_long_enough_is_taken_for_a_new_regime() -> None:
    found = scorer(learning=Learning(accept_after=2 * 3600.0))
    judge(found, quiet(100))
    told = events(judge(found, quiet(600, 1) + FAULT, 100))
    assert told[0] == (100, "opened")
    closed = next(row for row, event in told if event == "closed")
    assert 100 + 120 < closed < 600


@pytest.mark.parametrize("recipe", [Mahalanobis(), MEWMA()])
def test_a_second_fault_is_told_soon_after_the_first_was_accepted(recipe: Detector) -> None:
    """Calibration does not take the scores of what was accepted for scores of normal readings."""
    settings = {"calibration": Calibration(), "learning": Learning(accept_after=4 * 3600.0)}
    found = scorer(detectors={"own": recipe}, **settings)
    judge(found, quiet(3000))
    regime = quiet(2000, 1) + np.array([1.2, 0.0])
    told = [(3000 + i, judge(found, regime[i : i + 1], 3000 + i)) for i in range(600)]
    [closed] = [row for row, scored in told if "closed" in {event for _, event in events(scored)}]
    judge(found, regime[600 : closed - 2900], 3600)
    fault = regime[closed - 2900 : closed - 2840] + np.array([0.0, 1.5])
    assert "opened" in {event for _, event in events(judge(found, fault, max(closed + 100, 3600)))}


def test_operator_s_word_makes_it_normal() -> None:
    found = scorer()
    judge(found, quiet(100))
    judge(found, quiet(50, 1) + FAULT, 100)
    assert found.accept("m").tolist() == [0]
    assert found.accept("nobody").tolist() == []
    told = events(judge(found, quiet(300, 2) + FAULT, 150))
    assert [event for _, event in told] == ["closed"]
    assert found.accept("m").tolist() == [], "it has no open alert any more"


def test_nothing_opens_and_nothing_is_learned_during_maintenance() -> None:
    work = Maintenance(start="2023-11-14T23:53:20Z", end="2023-11-15T01:33:20Z")  # rows 100 to 199
    found = scorer(alert=AlertRule(maintenance=(work,)))
    judge(found, quiet(100))
    before = found.components(np.array([0]))["model:z"]
    assert events(judge(found, quiet(100, 1) + FAULT, 100)) == []
    after = found.components(np.array([0]))["model:z"]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert events(judge(found, quiet(1, 2) + FAULT, 200)) == [(200, "opened")]


def test_maintenance_comes_again_and_is_for_those_it_names() -> None:
    weekly: dict[str, Any] = {
        "start": "2023-11-07T23:53:20Z",
        "end": "2023-11-08T01:33:20Z",
        "every": 7 * 86400.0,
    }
    for machines, opened in (("*", False), ("pump-*", True)):
        found = scorer(alert=AlertRule(maintenance=(Maintenance(**weekly, machines=(machines,)),)))
        judge(found, quiet(100))
        assert bool(events(judge(found, quiet(10, 1) + FAULT, 100))) == opened


@pytest.mark.parametrize(("direction", "opens"), [("both", True), ("down", True), ("up", False)])
def test_direction_of_the_deviation_decides(direction: Any, opens: bool) -> None:
    found = scorer(alert=AlertRule(direction=direction))
    judge(found, quiet(100))
    assert bool(events(judge(found, quiet(5, 1) - FAULT, 100))) == opens


def test_small_deviation_opens_no_alert() -> None:
    flat = np.full((100, 2), [10.0, 5.0])
    step = np.array([0.02, 0.0])
    for settings, opens in (
        ({}, True),
        ({"alert": AlertRule(min_deviation=0.01)}, False),
        ({"sensors": (Sensor("a", min_deviation=0.05), Sensor("b"))}, False),
        ({"sensors": (Sensor("a"), Sensor("b", min_deviation=0.05))}, True),
    ):
        found = scorer(**settings)
        judge(found, flat)
        assert bool(events(judge(found, flat[:5] + step, 100))) == opens, settings


@pytest.mark.parametrize("sensors", [(Sensor("a", min_deviation=0.9), Sensor("b")), ()])
def test_an_open_alert_goes_on_down_to_half_of_the_least_deviation(sensors: tuple[Sensor, ...]) -> None:
    """The usual is 10; the fault is worth 1.0 at first, then 0.6, then 0.3, all of which score as anomalous."""
    rows = quiet(160)
    for start, fault in ((100, 1.0), (105, 0.6), (125, 0.3)):
        rows[start:, 0] = 10.0 + fault
    stated: dict[str, Any] = {"sensors": sensors} if sensors else {"alert": AlertRule(min_deviation=0.09)}
    assert events(judge(scorer(**stated), rows)) == [(100, "opened"), (127, "closed")]
    rows[100:105, 0] = 10.6
    assert events(judge(scorer(**stated), rows)) == [], "it opens none"
    whole = scorer(**stated, learning=Learning(while_open=True))
    parted = scorer(**stated, learning=Learning(while_open=True))
    again = [event for i in range(len(rows)) for event in events(judge(parted, rows[i : i + 1], i))]
    assert events(judge(whole, rows)) == again


def test_detectors_decide_together_and_say_why() -> None:
    recipes = {"z": AdaptiveZ(warmup=20, half_life=50), "trees": HalfSpaceTrees(n_trees=10, window_size=50)}
    found = scorer(
        detectors=recipes,
        calibration=Calibration(warmup=100),
        combine=Combination(weights={"trees": 0.5}),
        alert=AlertRule(probability=1e-4, close_after=1),
    )
    judge(found, quiet(600))
    scored = judge(found, quiet(1, 1) + 5 * FAULT, 600)
    assert set(scored.scores) == {"z", "trees", "combined"}
    [alert] = scored.alerts
    assert (alert.detector, alert.event, alert.model.kind) == ("combined", "opened", "combined")
    assert alert.probability is not None
    assert alert.probability <= 1e-4
    assert alert.contributions[0].sensor == "a"
    assert sum(abs(reason.share) for reason in alert.contributions) == pytest.approx(1.0)
    assert alert.contributions[0].expected == pytest.approx(10.0, abs=0.2)


def test_alert_carries_the_distance_to_the_nearest_normal_example() -> None:
    examples, band = KNN(k=1, warmup=20, threshold=5.0), AdaptiveZ(warmup=20, half_life=50)
    found = scorer(detectors={"knn": examples, "z": band})
    judge(found, quiet(100))
    alone = examples.build(("a", "b"))
    readings = np.concatenate([quiet(100), quiet(1, 1) + FAULT])
    alone.score_learn(np.zeros(101, np.int64), readings, np.arange(101.0))
    told = {alert.detector: alert.nearest_example for alert in judge(found, readings[100:], 100).alerts}
    assert told == {"knn": pytest.approx(alone.nearest_distances(np.array([100]))[0]), "z": None}
    together = scorer(
        detectors={"knn": KNN(k=1, warmup=20), "z": band},
        calibration=Calibration(warmup=100),
        combine=Combination(),
        alert=AlertRule(probability=1e-3),
    )
    judge(together, quiet(600))
    [alert] = judge(together, readings[100:], 600).alerts
    assert alert.nearest_example is not None
    assert 10 < alert.nearest_example < 50, "the fault is 30 sigmas off"
    assert b'"nearest_example":' in alert_message(alert, "x").body


def test_budget_begins_with_a_threshold_by_how_often_a_machine_is_read() -> None:
    limits = []
    for budget in (1.0, 10.0):
        found = scorer(calibration=Calibration(warmup=100), alert=AlertRule(budget=budget))
        limits.append(float(judge(found, quiet(150)).thresholds["z"][-1]))
    assert limits[0] == pytest.approx(-np.log10(1 / 1440))
    assert limits[1] == pytest.approx(limits[0] - 1)


def test_budget_of_a_topology_is_shared_by_the_machines_known_so_far() -> None:
    rule = AlertRule(budget=10.0, budget_per="topology")
    found = scorer(calibration=Calibration(warmup=100), alert=rule)
    alone = judge(found, quiet(150)).thresholds["z"][-1]
    assert alone == pytest.approx(-np.log10(10 / 1440))
    for machine, start, known in (("n", 0, 2), ("o", 0, 3), ("n", 150, 3)):
        shared = judge(found, quiet(150), start, machine).thresholds["z"][-1]
        assert shared == pytest.approx(alone + np.log10(known))
    restored = scorer(calibration=Calibration(warmup=100), alert=rule)
    restored.admit(["n"], found.components(found.residents.slots(["n"])))  # the others wait on disk
    assert judge(restored, quiet(1), 300, "n").thresholds["z"][-1] == pytest.approx(alone + np.log10(3))


def test_budget_is_shared_by_the_detectors_that_alert_of_a_machine() -> None:
    rule, limits = AlertRule(budget=10.0), {}
    detectors: dict[str, Any] = {
        "z": AdaptiveZ(warmup=20),
        "y": AdaptiveZ(warmup=20),
        "pumps": AdaptiveZ(warmup=20, machines=("pump-*",)),
    }
    for combine in (None, Combination()):
        found = scorer(detectors=detectors, calibration=Calibration(warmup=100), combine=combine, alert=rule)
        for machine in ("fan-1", "pump-1"):
            told = judge(found, quiet(150), 0, machine).thresholds
            limits[machine, combine is None] = float(told["z" if combine is None else "combined"][-1])
    whole = -np.log10(10 / 1440)
    assert limits["fan-1", False] == limits["pump-1", False] == pytest.approx(whole), "they decide together"
    assert limits["fan-1", True] == pytest.approx(whole + np.log10(2))
    assert limits["pump-1", True] == pytest.approx(whole + np.log10(3))


@pytest.mark.parametrize("several", [1, 3])
def test_budget_of_a_machine_holds_over_all_its_detectors(several: int) -> None:
    rule = AlertRule(budget=28.8)  # one in fifty readings
    detectors: dict[str, Any] = {
        "z": AdaptiveZ(warmup=20),
        "m": Mahalanobis(warmup=50),
        "r": LODA(),
    }
    found = scorer(
        detectors=dict(list(detectors.items())[:several]),
        calibration=Calibration(),
        alert=rule,
        learning=Learning(while_open=True),
    )
    judge(found, quiet(4000))
    opened = [event for event in events(judge(found, quiet(20_000, 1), 4000)) if event[1] == "opened"]
    assert 0.6 < len(opened) / 400 < 1.5


@pytest.mark.parametrize("rule", [AlertRule(), AlertRule(hold=3, within=5, close_after=10)])
def test_budget_is_of_alerts_whatever_they_ask_for(rule: AlertRule) -> None:
    rule = msgspec.structs.replace(rule, budget=14.4)  # one in a hundred readings
    found = scorer(calibration=Calibration(), alert=rule, learning=Learning(while_open=True))
    judge(found, quiet(4000))
    opened = [event for event in events(judge(found, quiet(20_000, 1), 4000)) if event[1] == "opened"]
    assert 0.5 < len(opened) / 200 < 2.0


@pytest.mark.parametrize(
    "recipe", [KNN(), HalfSpaceTrees(), LODA(), RandomCutForest(n_trees=10)], ids=lambda recipe: recipe.kind
)
def test_scores_without_a_scale_of_their_own_alarm_rarely_all_the_same(recipe: Detector) -> None:
    values = np.random.default_rng(0).normal(50.0, 1.0, (6000, 1))
    values[5900] += 12.0
    found = scorer(detectors={"d": recipe}, sensors=(SENSORS[0],))
    told = events(judge(found, values))
    opened = [offset for offset, kind in told if kind == "opened"]
    if not isinstance(recipe, HalfSpaceTrees):  # they know a single sensor's range, and nothing beyond it
        assert 5900 in opened
    assert len(opened) < 12
    stated = scorer(detectors={"d": msgspec.structs.replace(recipe, threshold=0.01)}, sensors=(SENSORS[0],))
    assert set(judge(stated, values[:1000]).thresholds["d"].tolist()) == {0.01}, "what is stated holds"


@pytest.mark.parametrize("method", ["mean", "max", "k_of_n"])
def test_budget_holds_for_detectors_that_decide_together(method: str) -> None:
    recipes = {"z": AdaptiveZ(warmup=20, half_life=500), "trees": HalfSpaceTrees(n_trees=10, window_size=200)}
    rates = {}
    for calibrate in (True, False):
        found = scorer(
            detectors=recipes,
            calibration=Calibration(),
            combine=Combination(method=method, calibrate=calibrate),  # type: ignore[arg-type]
            alert=AlertRule(probability=0.01, close_after=0),
        )
        judge(found, quiet(2000))
        opened = [event for event in events(judge(found, quiet(20_000, 1), 2000)) if event[1] == "opened"]
        rates[calibrate] = len(opened) / 20_000
    assert 0.007 < rates[True] < 0.014
    assert abs(np.log(rates[False] / 0.01)) > abs(np.log(rates[True] / 0.01))


@pytest.mark.parametrize("kind", ["adaptive_z", "robust_z", "mahalanobis", "left_matrix_profile", "knn"])
@pytest.mark.parametrize("combine", [None, Combination()], ids=["alone", "combined"])
def test_a_calibrated_sensor_that_never_moved_is_told_when_it_does(
    kind: str, combine: Combination | None
) -> None:
    values = np.full((3000, 1), 5.0)
    values[2000:] = 9.0
    detectors = {"d": ONLINE[kind]()} | ({} if combine is None else {"e": AdaptiveZ()})
    topology = Topology(
        name="t",
        source=Source(sensors=(Sensor("value"),)),
        detectors=detectors,  # type: ignore[arg-type]
        calibration=Calibration(),
        combine=combine,
        health=None,
    )
    scorer, rows = fresh_scorer(topology), np.arange(3000)
    scorer.admit(["m"], {})
    batch = Batch(
        ["m"] * 3000,
        np.asarray(rows * 60.0, np.float64),
        values,
        rows,
        np.zeros(3000, np.int64),
        np.full(3000, -1),
    )
    opened = [
        alert.position.offset for alert in scorer.process(batch, rows).alerts if alert.event == "opened"
    ]
    assert opened[:1] == [2000]


@pytest.mark.parametrize(("budget", "said"), [(2.0, 0), (1.0 / 7.0, 1)])
def test_budget_beyond_what_conformal_counts_is_said_once_and_kept_by_the_tail(
    budget: float, said: int
) -> None:
    rule = AlertRule(budget=budget, close_after=0)
    found = scorer(calibration=Calibration(method="conformal", history=2000), alert=rule)
    values = quiet(4000)
    values[3900] += FAULT
    with capture_logs() as told:
        scored = judge(found, values)
    warnings = [line for line in told if line["event"] == "threshold_beyond_history"]
    assert len(warnings) == said
    assert all(line["counted"] == "1 in 2,001" for line in warnings)
    assert (3900, "opened") in events(scored)


@pytest.mark.parametrize(
    ("rule", "floor", "opens"),
    [
        ({"direction": "up"}, 0.0, False),
        ({"direction": "down"}, 0.0, True),
        ({"min_deviation": 0.4}, 0.0, True),
        ({"min_deviation": 0.6}, 0.0, False),
        ({}, 4.0, True),
        ({}, 6.0, False),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_stretch_is_weighed_by_its_largest_difference_not_by_its_last_value(
    rule: dict[str, Any], floor: float, opens: bool, together: bool
) -> None:
    """A dip of 5 from 10: eight anomalous readings later it is in the stretch, and the last values a little high."""
    values = 10.0 + 0.01 * np.sin(np.arange(1200) * 2 * np.pi / 40)
    values[1000:1004] = 5.0
    values[1004:1040] += 0.03
    names = ("shape", "other") if together else ("shape",)
    limit = None if together else 20.0
    recipes = {name: LeftMatrixProfile(length=24, history=800, threshold=limit) for name in names}
    more = {"calibration": Calibration(), "combine": Combination(calibrate=False)} if together else {}
    alert = AlertRule(hold=12, probability=1e-3 if together else None, **rule)
    sensors = (Sensor("a", min_deviation=floor),)
    found = scorer(sensors=sensors, detectors=recipes, health=None, alert=alert, **more)
    opened = [number for number, event in events(judge(found, values[:, None])) if event == "opened"]
    assert bool(opened) == opens
    assert all(1004 <= number < 1040 for number in opened)


def test_chart_tells_the_mean_that_is_off_and_a_spike_by_its_value() -> None:
    values = quiet(800)
    values[600:640, 0] += 0.15
    found = scorer(detectors={"chart": MEWMA()}, health=None)
    first = next(alert for alert in judge(found, values).alerts if alert.event == "opened")
    assert re.match(
        r"a is high on average, over about its last 19 readings: 10\.\d+, expected about (10|9\.99|10\.0)\d* \(chart",
        first.reason,
    )
    stretch = first.contributions[0].stretch
    assert stretch is not None
    assert stretch.first_seen is None
    assert 600 <= first.position.offset < 640
    assert b'"stretch"' in alert_message(first, "alerts").body
