"""A detector that sees no value of a reading abstains: it is neither normal nor anomalous, and teaches nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors import KNN, AdaptiveZ, HalfSpaceTrees, LeftMatrixProfile, RandomCutForest
from detectors.automatic import Auto
from detectors.base import Floats
from detectors.calibration import Calibration
from detectors.features import Calendar
from detectors.kernels import floats
from detectors.registry import TRAINABLE
from stream.alerts import ModelInfo
from stream.arrivals import UNNUMBERED
from stream.backtest import fresh_scorer
from stream.combining import combined, improbability
from stream.gates import RollbackWhen
from stream.readings import Batch
from stream.recipes import online_info
from stream.retrain_rule import Drift, Retrain
from stream.rules import AlertRule, Combination, Learning
from stream.scorer import Scored, Scorer
from stream.topology import RegistryModel, Source, Topology

START, MINUTE, N, AWAY = 1_700_000_000.0, 60.0, 4500, 1500
GONE = slice(1000, 1000 + AWAY)
SLOT = np.zeros(1, np.int64)


def scorer(detectors: Any = None, *, sensors: tuple[str, ...] = ("a", "b"), **settings: Any) -> Scorer:
    """Of sensors a and b, by default with one detector that looks at a alone; nobody looks after sick sensors."""
    found: Any = {"z": AdaptiveZ(inputs=("a",))} if detectors is None else detectors
    source = Source(sensors=sensors)  # type: ignore[arg-type]
    made = fresh_scorer(Topology(name="t", source=source, detectors=found, health=None, **settings))
    made.admit(["m"], {})
    return made


def judge(found: Scorer, values: Floats, start: int = 0) -> Scored:
    n = len(values)
    times = START + MINUTE * np.arange(start, start + n, dtype=np.float64)
    none = np.full(n, UNNUMBERED)
    batch = Batch(["m"] * n, times, values, np.arange(n), np.zeros(n, np.int64), none)
    return found.process(batch, start + np.arange(n))


def clock(n: int) -> Floats:
    """A time each minute."""
    return floats(START + MINUTE * np.arange(n))


def quiet(n: int = N, *, gone: slice | None = None, seed: int = 7, sensors: int = 2) -> Floats:
    """Normal readings; the first sensor is missing for a while."""
    values = np.random.default_rng(seed).normal(10.0, 1.0, (n, sensors))
    if gone is not None:
        values[gone, 0] = np.nan
    return values


def events(scored: Scored) -> list[tuple[int, str]]:
    return [(alert.position.offset, alert.event) for alert in scored.alerts]


def opened(scored: Scored, since: int = 0) -> list[tuple[int, str]]:
    """Alerts opened from a row on, with their severity."""
    return [
        (a.position.offset, a.severity)
        for a in scored.alerts
        if a.event == "opened" and a.position.offset >= since
    ]


CONFORMAL = Calibration(method="conformal")
CALIBRATED: dict[str, Any] = {"calibration": Calibration(), "alert": AlertRule(probability=1e-5)}


@pytest.mark.parametrize(
    ("detectors", "settings"),
    [
        ({"z": AdaptiveZ(inputs=("a",))}, CALIBRATED),
        ({"z": AdaptiveZ(inputs=("a",))}, {**CALIBRATED, "alert": AlertRule(budget=0.01)}),
        ({"z": AdaptiveZ(inputs=("a",))}, {"calibration": CONFORMAL, "alert": AlertRule(probability=0.0011, hold=3)}),
        ({"knn": KNN(inputs=("a",))}, {}),
        ({"p": LeftMatrixProfile(inputs=("a",))}, CALIBRATED),
    ],
    ids=["evt", "budget", "conformal", "limiter", "profile"],
)  # fmt: skip
def test_a_sensor_that_comes_back_healthy_opens_no_alert(
    detectors: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Scores of 0 while it was away were remembered: the first value was as rare as 1 in 10^15."""
    found = judge(scorer(detectors, **settings), quiet(gone=GONE)[: GONE.stop + 500])
    assert opened(found, GONE.stop) == []
    assert np.isfinite(next(iter(found.scores.values()))[GONE.stop :]).all()


@pytest.mark.parametrize("gone", [GONE, slice(0, 1000)], ids=["for long", "from the start"])
@pytest.mark.parametrize(
    ("detector", "settings"),
    [(AdaptiveZ(inputs=("a",)), CALIBRATED), (KNN(inputs=("a",)), CALIBRATED), (KNN(inputs=("a",)), {})],
    ids=["z", "knn", "limiter"],
)
def test_scores_are_as_if_the_readings_without_a_value_had_not_come(
    detector: Any, settings: dict[str, Any], gone: slice
) -> None:
    """From the start, too: a warm-up is of readings with a value, and scores of 0 before its end teach nothing."""
    values = quiet(gone=gone)
    there = ~np.isnan(values[:, 0])
    holed = judge(scorer({"d": detector}, **settings), values)
    short = judge(scorer({"d": detector}, **settings), values[there])
    np.testing.assert_array_equal(holed.scores["d"][there], short.scores["d"])
    np.testing.assert_array_equal(holed.thresholds["d"][there], short.thresholds["d"])


def test_what_calibrates_and_keeps_the_budget_is_the_same_as_if_the_readings_had_not_come() -> None:
    settings: dict[str, Any] = {"calibration": Calibration(), "alert": AlertRule(budget=10)}
    holed, short = scorer(**settings), scorer(**settings)
    values = quiet(gone=GONE)
    judge(holed, values)
    judge(short, values[~np.isnan(values[:, 0])])
    for table in ("calibration:z", "budget:z", "model:z"):
        one, other = holed.components(SLOT)[table], short.components(SLOT)[table]
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{table} {name}")


def test_a_score_that_abstains_is_told_as_one_of_a_machine_that_is_not_scored() -> None:
    found = judge(scorer(**CALIBRATED), quiet(gone=GONE))
    assert np.isnan(found.scores["z"][GONE]).all()
    assert np.isinf(found.thresholds["z"][GONE]).all()
    assert np.isfinite(found.scores["z"][: GONE.start]).all()


def test_an_alert_whose_sensor_goes_missing_stays_open_and_is_one() -> None:
    values = quiet()
    values[500:, 0] += 15.0
    values[600:800, 0] = np.nan
    values[1200:, 0] -= 15.0
    assert events(judge(scorer(), values)) == [(500, "opened"), (1202, "closed")]


def test_a_missing_reading_breaks_no_row_of_anomalous_ones_and_none_of_normal_ones() -> None:
    values = quiet(400)
    values[[300, 303], 0] += 20.0
    values[[301, 302, 304, 306, 307], 0] = np.nan
    found = judge(scorer(alert=AlertRule(hold=2, close_after=2)), values)
    assert events(found) == [(303, "opened"), (308, "closed")]
    for gap in (False, True):
        values[301, 0] = np.nan if gap else 10.0
        assert bool(opened(judge(scorer(alert=AlertRule(hold=2, close_after=9)), values))) == gap


def test_an_alert_of_a_sensor_that_stays_away_is_accepted_by_time_and_learned_when_it_returns() -> None:
    values = quiet()
    values[500:, 0] += 15.0
    values[600:1500, 0] = np.nan
    slow = judge(scorer(learning=Learning(accept_after=1e9)), values)
    quick = judge(scorer(learning=Learning(accept_after=600 * MINUTE)), values)
    assert events(slow) == [(500, "opened")]
    [_, (row, event)] = events(quick)
    assert (event, row > 1500) == ("closed", True)


def test_the_calendar_is_no_value() -> None:
    detector = {"z": AdaptiveZ(inputs=("a", "hour"))}
    found = judge(
        scorer(detector, features={"hour": Calendar(calendar="hour")}, **CALIBRATED), quiet(gone=GONE)
    )
    assert np.isnan(found.scores["z"][GONE]).all()
    assert opened(found, GONE.stop) == []


def test_of_several_sensors_those_that_are_there_are_scored() -> None:
    found = judge(scorer({"z": AdaptiveZ()}, **CALIBRATED), quiet(gone=GONE))
    assert np.isfinite(found.scores["z"]).all()
    assert opened(found, GONE.start) == []


TWO = {"za": AdaptiveZ(inputs=("a",)), "zb": AdaptiveZ(inputs=("b",))}


@pytest.mark.parametrize("method", ["mean", "k_of_n", "max"])
def test_who_abstains_has_no_vote(method: Any) -> None:
    rule = Combination(method=method, calibrate=False)
    found = judge(scorer(TWO, combine=rule, **CALIBRATED), quiet(gone=GONE))
    rest, both = found.scores["zb"][GONE], np.array([found.scores["za"], found.scores["zb"]])[:, GONE.stop :]
    np.testing.assert_array_equal(found.scores["combined"][GONE], rest)
    expected = {"mean": both.mean(axis=0), "k_of_n": both.min(axis=0), "max": both.max(axis=0)}[method]
    np.testing.assert_allclose(found.scores["combined"][GONE.stop :], expected)


def test_weights_are_of_those_that_vote() -> None:
    votes = np.array([[1.0, np.nan, np.nan, np.nan], [3.0, 3.0, np.nan, np.nan], [4.0, 4.0, 4.0, np.nan]])
    told = combined(votes, Combination(), np.array([2.0, 1.0, 0.0]))
    np.testing.assert_allclose(told, [5 / 3, 3.0, np.nan, np.nan])


def test_a_fault_is_seen_by_the_detector_that_remains() -> None:
    values = quiet(gone=slice(1000, N))
    values[2000:2010, 1] += 12.0
    for method in ("mean", "k_of_n", "max"):
        rule: Any = Combination(method=method)
        found = judge(scorer(TWO, combine=rule, **CALIBRATED), values)
        assert 2000 in [row for row, _ in opened(found)], method


@pytest.mark.parametrize("method", ["mean", "k_of_n", "max"])
@pytest.mark.parametrize("alike", [False, True])
def test_fewer_voters_raise_no_more_false_alarms(method: Any, alike: bool) -> None:
    """Two that must agree are rarer than one: taken for the same, one alone would alarm ten to a hundred times as
    often. Then, too, when all are back."""
    rule = AlertRule(probability=1e-3, close_after=1)
    found = scorer(TWO, combine=Combination(method=method), calibration=Calibration(), alert=rule)
    values = quiet(60_000)
    if alike:
        values[:, 1] = values[:, 0] + 0.1 * values[:, 1]
    values[20_000:40_000, 0] = np.nan
    told = np.nan_to_num(judge(found, values).scores["combined"])
    away, back = (told[20_000:40_000] >= 3.0).mean(), (told[40_000:] >= 3.0).mean()
    assert away < 3e-3
    assert back < 3e-3
    if not alike:
        assert away > 1e-4, "and they are not deaf"


@pytest.mark.parametrize("method", ["mean", "k_of_n", "max"])
def test_votes_that_have_nothing_to_do_with_each_other_are_as_rare_as_is_said(method: Any) -> None:
    votes = -np.log10(np.random.default_rng(0).random((3, 200_000)))
    votes[1, ::2] = np.nan
    weights, rule = np.array([1.0, 1.0, 0.5]), Combination(method=method)
    rare = improbability(combined(votes, rule, weights), votes, rule, weights)
    for part in (rare[::2], rare[1::2]):
        assert 0.8e-2 < (part >= 2.0).mean() < 1.2e-2


def test_together_nothing_is_learned_of_a_vote_that_lacks_a_voice() -> None:
    settings: dict[str, Any] = {"combine": Combination(), **CALIBRATED}
    found = scorer(TWO, **settings)
    judge(found, quiet(1000))
    before = found.components(SLOT)["calibration:combined"]["count"]
    judge(found, quiet(500, gone=slice(0, 500)), 1000)
    assert found.components(SLOT)["calibration:combined"]["count"] == before


def test_of_a_reading_without_any_value_nobody_says_anything() -> None:
    values = quiet()
    values[GONE] = np.nan
    found = judge(scorer(TWO, combine=Combination(), **CALIBRATED), values)
    assert np.isnan(found.scores["combined"][GONE]).all()
    assert np.isinf(found.thresholds["combined"][GONE]).all()
    assert opened(found, GONE.start) == []


@pytest.mark.parametrize("combine", [None, Combination()], ids=["alone", "combined"])
def test_a_shadow_abstains_with_its_champion_and_no_reading_counts_as_an_error(
    combine: Combination | None,
) -> None:
    bound = RegistryModel(
        model="models:/m@champion",
        inputs=("a",),
        rollback_when=RollbackWhen(errors="> 0"),
        fit=TRAINABLE["isolation_forest"](),
        retrain=Retrain(drift=Drift(of="score", every=1)),
    )
    topology = Topology(
        name="t",
        source=Source(sensors=("a", "b")),  # type: ignore[arg-type]
        detectors={"m": bound, "zb": AdaptiveZ(inputs=("b",))},
        calibration=Calibration(),
        combine=combine,
        health=None,
    )

    def model() -> Any:
        return AdaptiveZ().build(("a",))

    info = [ModelInfo("m", str(i), f"sha256:{i}", "z") for i in (1, 2)]
    zb = topology.detectors["zb"]
    assert isinstance(zb, AdaptiveZ)
    found = Scorer(topology, {"m": (model(), info[0]), "zb": (zb.build(("b",)), online_info(zb))})
    found.admit(["m"], {})
    found.shadow("m", model(), info[1], reference={}, identity="x")
    found.beside.swapped("m", back=False)
    values = quiet(gone=GONE)
    watched = 0
    for start in range(0, N, 500):
        scored = judge(found, values[start : start + 500], start)
        watched += sum(len(rows) for rows, _ in scored.watched["m"])
        found.beside.observe(scored)
    total = found.beside.shadows["m"].comparison.total
    assert (total.readings, total.agreement, total.unscored) == (N - AWAY, 1.0, 0)
    assert found.beside.probations["m"].verdict is None
    assert N - AWAY - 20 < watched <= N - AWAY, "nor does the watch for drift see a score"


@pytest.mark.parametrize("sensors", [1, 3])
def test_auto_looks_at_readings_with_values_only(sensors: int) -> None:
    values = quiet(4000, sensors=sensors)
    none = np.full((1000, sensors), np.nan)
    holed = floats(np.vstack([none, values[:2000], none, none, values[2000:]]))
    names = ("a", "b", "c")[:sensors]
    made = Auto().build(names)
    made.score_learn(np.zeros(len(holed), np.int64), holed, clock(len(holed)))
    whole = Auto().build(names)
    whole.score_learn(np.zeros(4000, np.int64), values, clock(4000))
    assert made.explain(0).split(":")[0] == whole.explain(0).split(":")[0]
    one, other = made.snapshot(SLOT), whole.snapshot(SLOT)
    for name in ("count", "distinct"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name in [name for name in one if name.endswith(("tail0.count", "limits.count"))]:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_stretches_keep_their_examples_while_a_sensor_is_missing() -> None:
    values = quiet(1200, sensors=1)
    holed = floats(np.vstack([values[:600], np.full((5000, 1), np.nan), values[600:]]))
    made = LeftMatrixProfile(history=1000).build(("a",))
    scores = made.score_learn(np.zeros(len(holed), np.int64), holed, clock(len(holed)))
    whole = LeftMatrixProfile(history=1000).build(("a",))
    usual = whole.score_learn(np.zeros(1200, np.int64), values, clock(1200))
    assert scores[-600:].max() < 1.2 * usual[600:].max()


def test_stretches_of_a_sensor_that_was_never_heard_before_are_not_compared_with_nothing() -> None:
    values = quiet(2000, gone=slice(0, 1000))
    made = LeftMatrixProfile(history=1000).build(("a", "b"))
    scores = made.score_learn(np.zeros(2000, np.int64), values, clock(2000))
    whole = LeftMatrixProfile(history=1000).build(("a", "b"))
    usual = whole.score_learn(np.zeros(2000, np.int64), quiet(2000), clock(2000))
    assert scores[1000:].max() < 1.2 * usual[1000:].max()


def test_trees_of_one_sensor_fill_no_window_without_it() -> None:
    values = quiet(1000, sensors=1)
    holed = floats(np.vstack([np.full((600, 1), np.nan), values]))
    made, whole = HalfSpaceTrees().build(("a",)), HalfSpaceTrees().build(("a",))
    scores = made.score_learn(np.zeros(1600, np.int64), holed, np.arange(1600.0))
    np.testing.assert_array_equal(
        scores[600:], whole.score_learn(np.zeros(1000, np.int64), values, np.arange(1000.0))
    )


def test_a_forest_takes_a_sensor_that_is_first_heard_late_for_no_fault() -> None:
    """A place of zeros was left by its first value as far as anything can be."""
    for seed in range(3):
        values = quiet(1200, gone=slice(0, 1000), seed=seed, sensors=3)
        made = RandomCutForest().build(("a", "b", "c"))
        scores = made.score_learn(np.zeros(1200, np.int64), values, clock(1200))
        assert scores[1000:].max() < made.threshold
