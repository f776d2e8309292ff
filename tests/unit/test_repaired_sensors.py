"""A sensor that was sick and is well again raises no alert of the process: what it said is no evidence of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from detectors import registry
from detectors.base import ForgettingModel
from detectors.discords import LeftMatrixProfile
from detectors.features import FeatureTable
from detectors.features.declared import Change, Lag, Rolling
from detectors.features.relations import Calendar, Correlation, Difference
from detectors.smoothing import ExponentialSmoothing
from stream.backtest import backtest, fresh_scorer
from stream.config import load
from stream.histories import read_history
from stream.topology import Topology

N, SICK, WELL = 4000, 2000, 2500
KINDS = (
    "adaptive_z",
    "robust_z",
    "cusum",
    "page_hinkley",
    "seasonal_profile",
    "holt_winters",
    "autoregressive",
    "left_matrix_profile",
    "half_space_trees",
    "loda",
    "online_pca",
    "mahalanobis",
    "mewma",
    "mcusum",
    "knn",
    "kswin, threshold: 7",
    "adwin, delta: 0.00001",
    "mewma, statistic: t2",
    "random_cut_forest, n_trees: 5",
)
EDITS = ("another unit", "stuck at 0", "stuck near its level", "out of range")


def history(edit: str, n: int = N) -> pd.DataFrame:
    """Three sensors without any fault of the process; the second is sick for 500 readings."""
    rng = np.random.default_rng(2)
    values, noise = np.zeros((n, 3)), rng.normal(size=(n, 3))
    for i in range(1, n):
        values[i] = 0.5 * values[i - 1] + noise[i]
    values += [50, 100, 200]
    sick = values[SICK:WELL, 1]
    match edit:
        case "another unit":
            sick *= 14.5038
        case "stuck at 0":
            sick[:] = 0.0
        case "stuck near its level":
            sick[:] = 102.0
        case "out of range":
            sick[:] = 110.0 + np.minimum(np.arange(len(sick)), 60)
    times = pd.date_range("2026-01-01", periods=n, freq="60s", tz="UTC")
    return pd.DataFrame({"timestamp": times, **dict(zip("abc", values.T, strict=True))})


def written(folder: Path, body: str, edit: str) -> tuple[Topology, Path]:
    """A topology of these detectors and the history, as files."""
    sensors = "[a, {name: b, minimum: -10, maximum: 120}, c]" if edit == "out of range" else "[a, b, c]"
    source = f"source: {{sensors: {sensors}, missing_sensor: accept, out_of_range: alert}}"
    (folder / "t.yaml").write_text(f"name: t\n{source}\n{body}\n")
    history(edit).to_csv(folder / "x.csv", index=False)
    return load(folder / "t.yaml"), folder / "x.csv"


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_no_process_alert_opens_after_a_sick_sensor_is_well_again(
    kind: str, edit: str, tmp_path: Path
) -> None:
    body = "detectors: auto" if kind == "auto" else f"detectors: {{m: {{kind: {kind}}}}}"
    topology, file = written(tmp_path, body, edit)
    alerts = backtest(fresh_scorer(topology), read_history(file, topology)).alerts
    assert {"sensor_stuck", "sensor_out_of_range", "unit_jump"} & {a.type for a in alerts}
    since = history(edit).timestamp[WELL]
    late = [a.reason for a in alerts if a.event == "opened" and pd.Timestamp(a.time) >= since]
    assert late == []


def test_a_fault_of_the_repaired_sensor_is_seen_as_before(tmp_path: Path) -> None:
    topology, file = written(tmp_path, "detectors: {m: {kind: mewma}}", "stuck at 0")
    frame = pd.read_csv(file)
    frame.loc[3000:3100, "b"] += 3.0
    frame.to_csv(file, index=False)
    alerts = backtest(fresh_scorer(topology), read_history(file, topology)).alerts
    late = [a for a in alerts if a.event == "opened" and pd.Timestamp(a.time) >= history("").timestamp[WELL]]
    assert [a.type for a in late] == ["process"]
    assert max(late[0].contributions, key=lambda c: abs(c.share)).sensor == "b"


FEATURED = """
features:
  b_mean: {rolling: mean, of: b, window: 20}
  gap: {difference: [b, c]}
  gap_std: {rolling: std, of: gap, window: 9}
detectors:
  chart: {kind: mewma}
  profile: {kind: left_matrix_profile, inputs: [b, c]}
  sums: {kind: cusum, inputs: [b_mean, gap_std]}
"""


@pytest.mark.parametrize("edit", EDITS)
def test_features_of_a_sick_sensor_begin_anew_with_it(edit: str, tmp_path: Path) -> None:
    topology, file = written(tmp_path, FEATURED.strip(), edit)
    alerts = backtest(fresh_scorer(topology), read_history(file, topology)).alerts
    since = history(edit).timestamp[WELL]
    assert [a.reason for a in alerts if a.event == "opened" and pd.Timestamp(a.time) >= since] == []


def test_features_know_what_they_are_made_of() -> None:
    table = FeatureTable(
        ("a", "b"),
        {
            "step": Change(of="a", change=1),
            "late": Lag(of="b", lag=2),
            "far": Rolling(of="step", rolling="slope", window=3),
            "both": Correlation(correlation=("far", "late"), window=3),
            "gap": Difference(difference=("b", "late")),
            "day": Calendar(calendar="hour", zone="UTC"),
        },
    )
    slots, times = np.zeros(12, np.int64), np.arange(12.0)
    values = np.random.default_rng(0).normal(size=(12, 2))
    whole = table.compute(slots, values, times)
    assert np.isfinite(whole[-1]).all()
    gone = table.forget_recent(np.array([0]), np.array([False, True]))
    assert [name for name, made in zip(table.columns, gone, strict=True) if made] == [
        "b",
        "late",
        "both",
        "gap",
    ]
    after = table.compute(slots[:6], values[:6], times[:6] + 12.0)
    assert np.isfinite(after[:, [0, 1, 2, 4]]).all()
    assert np.isfinite(after[:, [3, 5, 6]]).sum(axis=0).tolist() == [4, 2, 4]


def test_a_trained_smoothing_goes_back_to_the_level_of_its_training() -> None:
    frame = history("")[["a", "b", "c"]]
    model = registry.load(ExponentialSmoothing().fit(frame[:1500]))
    assert isinstance(model, ForgettingModel)
    values = history("stuck at 0")[["a", "b", "c"]].to_numpy()[1500:].copy()
    masked, well = SICK - 1400, WELL - 1500
    values[masked:well, 1] = np.nan
    slots, times = np.zeros(N, np.int64), np.arange(float(N))
    model.score_learn(slots[:masked], values[:masked], times[:masked])
    stuck = model.snapshot(np.array([0]))
    after = slice(masked, N - 1500)
    rest = (slots[after], values[after], times[after])
    sick = model.score_learn(*rest)[well - masked :]
    model.restore(np.array([0]), stuck)
    model.forget_recent(np.array([0]), np.array([False, True, False]))
    scores = model.score_learn(*rest)[well - masked :]
    assert (sick[:9] > 10 * model.threshold).all()
    assert scores.max() < 2 * model.threshold


def test_a_stretch_of_the_past_is_remembered_where_an_older_state_is_restored() -> None:
    values = np.sin(np.arange(300.0))[:, np.newaxis]
    slots, times = np.zeros(300, np.int64), np.arange(300.0)
    whole, model = (LeftMatrixProfile().build(("a",)) for _ in range(2))
    expected = whole.score_learn(slots, values, times)
    model.score_learn(slots[:200], values[:200], times[:200])
    state = dict(model.snapshot(np.array([0])))
    del state["mixed"]
    restored = LeftMatrixProfile().build(("a",))
    restored.restore(np.array([0]), state)
    assert np.array_equal(restored.score_learn(slots[200:], values[200:], times[200:]), expected[200:])


def test_a_profile_is_quiet_after_a_sensor_was_sick_for_longer_than_its_history() -> None:
    values = history("")[["a", "b"]].to_numpy().copy()
    values[1000:1100, 1] = 0.0
    values[1100:2500, 1] = np.nan
    model = LeftMatrixProfile().build(("a", "b"))
    slots, times = np.zeros(N, np.int64), np.arange(float(N))
    model.score_learn(slots[:1100], values[:1100], times[:1100], np.arange(1100) < 1000)
    model.forget_recent(np.array([0]), np.array([False, True]))
    scores = model.score_learn(slots[1100:], values[1100:], times[1100:])
    assert scores[1400:].max() < model.threshold
    model.score_learn(np.zeros(1, np.int64), np.array([[50.0, 200.0]]), np.zeros(1))
    assert model.contributions(np.array([0])).shares[0, 1] > 0.99
