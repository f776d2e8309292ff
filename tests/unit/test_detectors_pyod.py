"""PyOD by adapter: its own decision scores, fits at fixed counts, state without pickles, what is refused and why."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from detectors.base import Floats
from detectors.pyod import PyOD, PyODModel
from detectors.pyod_catalog import MODULES, construct
from stream.config import dump_yaml, load
from stream.errors import ConfigError

SENSORS = ("a", "b")
SMALL = {"IForest": {"n_estimators": 5}, "Sampling": {"subset_size": 10}}


def _readings(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal([3.0, 400.0], [0.1, 20.0], (n, 2))


def _score(model: PyODModel, values: Floats) -> Floats:
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64)
    )


def test_scores_are_pyod_s_own_of_the_latest_window_before_it_is_learned() -> None:
    values = _readings(100)
    model = PyOD(pyod="KNN", settings={"n_neighbors": 4}, window=40, warmup=30, refit=20).build(SENSORS)
    scores = _score(model, values)
    assert not scores[:30].any()
    for i in range(30, 100):
        end = 30 + (i - 30) // 20 * 20
        window = values[max(end - 40, 0) : end]
        center, scale = window.mean(axis=0), window.std(axis=0)
        detector = construct("KNN", {"n_neighbors": 4})
        detector.fit((window - center) / scale)
        base, high = np.quantile(detector.decision_scores_, [0.5, 0.99])
        [decision] = detector.decision_function((values[i : i + 1] - center) / scale)
        assert scores[i] == pytest.approx(max(decision - base, 0) / (high - base), rel=1e-9)


@pytest.mark.parametrize("name", MODULES)
def test_every_detector_is_cut_and_restored_without_a_difference_and_sees_a_spike(name: str) -> None:
    values = _readings(70, 1)
    values[66] = 30.0, -4000.0
    recipe = PyOD(pyod=name, settings=SMALL.get(name, {}), window=40, warmup=30, refit=25)
    whole, cut = recipe.build(SENSORS), recipe.build(SENSORS)
    scores = _score(whole, values)
    assert scores[66] >= max(1.0, scores[30:66].max())
    assert scores[30:66].any()
    first = np.concatenate([_score(cut, values[:7]), _score(cut, values[7:60])])
    restored = recipe.build(SENSORS)
    restored.restore(np.array([3]), cut.snapshot(np.array([0])))
    rest = restored.score_learn(np.full(10, 3), values[60:], np.zeros(10))
    np.testing.assert_array_equal(np.concatenate([first, rest]), scores)
    again = restored.contributions(np.arange(10))
    _score(cut, values[60:])
    np.testing.assert_array_equal(again.shares, cut.contributions(np.arange(10)).shares)


def test_reason_is_the_sensor_without_which_the_score_falls() -> None:
    model = PyOD(pyod="KNN", window=60, warmup=60).build(SENSORS)
    _score(model, _readings(60))
    _score(model, np.array([[3.0, 100.0], [9.0, np.nan]]))
    why = model.contributions(np.array([0, 1]))
    assert why.shares[0, 1] < -0.9
    assert why.shares[1].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(why.expected, np.tile(np.median(_readings(60), axis=0), (2, 1)))


def test_state_is_numbers_and_a_restore_of_another_window_forgets_the_fit() -> None:
    model = PyOD(pyod="KNN", window=40, warmup=40).build(SENSORS)
    _score(model, _readings(40))
    here = np.array([0])
    state = model.snapshot(here)
    assert all(array.dtype.kind in "if" for array in state.values())
    probe = np.array([[3.0, 400.0]])
    learn = np.zeros(1, np.bool_)
    [usual] = model.score_learn(here, probe, np.zeros(1), learn)
    model.restore(here, {**state, "ring": state["ring"] + 50.0})
    [far] = model.score_learn(here, probe, np.zeros(1), learn)
    assert far > usual + 10
    model.restore(here, state)
    assert model.score_learn(here, probe, np.zeros(1), learn)[0] == usual
    with pytest.raises(ValueError, match="negative"):
        model.restore(here, {**state, "readings": state["readings"] * 0 - 1})


def test_window_that_cannot_be_fitted_scores_nothing_and_the_next_one_does() -> None:
    model = PyOD(pyod="MCD", window=20, warmup=20, refit=20).build(SENSORS)
    values = np.concatenate([np.full((20, 2), 5.0), _readings(41)])
    values[60] = 9.0, 900.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = _score(model, values)
    assert np.isfinite(scores).all()
    assert scores[60] > model.threshold


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"pyod": "AutoEncoder"}, "not offered"),
        ({"pyod": "IForrest"}, 'Did you mean "IForest"'),
        ({"pyod": "KNN", "settings": {"neighbours": 3}}, "it has .*n_neighbors"),
        ({"pyod": "KNN", "settings": {"n_jobs": 2}}, "leave n_jobs out"),
        ({"pyod": "KNN", "settings": {"metric_params": {"x": 1}}}, "must be a number"),
        ({"pyod": "PCA", "settings": {"contamination": 7}}, "refuses them"),
        ({"pyod": "KNN", "warmup": 90, "window": 80}, "do not fit into window"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_reading(
    recipe: dict[str, object], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(f"name: t\nsource: {{sensors: [a, b]}}\ndetectors:\n  d: {recipe}\n")
    with pytest.raises(ConfigError, match=says):
        load(file)


def test_too_few_readings_for_the_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="LOF cannot be fitted on 10 readings of 2 sensors"):
        PyOD(pyod="LOF", settings={"n_neighbors": "x"}, warmup=10).build(SENSORS)


def test_missing_pyod_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyod", None)
    file = tmp_path / "t.yaml"
    file.write_text("name: t\nsource: {sensors: [a]}\ndetectors:\n  d: {pyod: ECOD}\n")
    with pytest.raises(ConfigError, match=r"detectors\.d.*pip install 'mmlw\[pyod\]'"):
        load(file)


def test_topology_names_it_as_pyod_and_comes_back_equal(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("name: t\nsource: {sensors: [a, b]}\ndetectors:\n  d: {pyod: ECOD, window: 100}\n")
    topology = load(file)
    assert topology.detectors["d"] == PyOD(pyod="ECOD", window=100)
    text = dump_yaml(topology)
    assert "kind" not in text
    file.write_text(text)
    assert load(file) == topology
