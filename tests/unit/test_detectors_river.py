"""The river adapter: river's own scores, state that cannot run code, mistakes found before the first reading."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from river import anomaly, preprocessing

from detectors.river import River
from detectors.river_catalog import names
from detectors.unpickling import StateRejected, restricted_loads

SENSORS = ("x", "y")
VALUES = np.random.default_rng(0).normal([0.0, 5.0], size=(300, 2))
SLOTS, TIMES = np.zeros(300, np.int64), np.arange(300.0)
NEEDS_TARGET = ("GaussianScorer", "PredictiveAnomalyDetection", "StandardAbsoluteDeviation")


def _recipe(name: str, **others: Any) -> River:
    return River(river=name, target="y" if name in NEEDS_TARGET else None, warmup=1, **others)


def test_scores_equal_rivers_own_pipeline() -> None:
    theirs = preprocessing.StandardScaler() | anomaly.LocalOutlierFactor(n_neighbors=5)
    recipe = _recipe("LocalOutlierFactor", settings={"n_neighbors": 5}, scale="standard")
    scores = recipe.build(SENSORS).score_learn(SLOTS, VALUES, TIMES)
    for score, row in zip(scores, VALUES.tolist(), strict=True):
        features = dict(zip(SENSORS, row, strict=True))
        if theirs["StandardScaler"].counts:
            assert score == theirs.score_one(features)
        theirs.learn_one(features)


def test_the_target_is_judged_and_the_others_are_features() -> None:
    theirs = anomaly.StandardAbsoluteDeviation()
    model = _recipe("StandardAbsoluteDeviation").build(SENSORS)
    scores = model.score_learn(SLOTS, VALUES, TIMES)
    for i, value in enumerate(VALUES[:, 1].tolist()):
        if i > 0:
            assert scores[i] == theirs.score_one(None, value)
        theirs.learn_one(None, value)
    shares, _ = model.contributions(np.array([50]))
    assert shares[0, 0] == 0
    assert abs(shares[0, 1]) == 1


@pytest.mark.parametrize("name", names())
def test_every_detector_of_river_runs_and_its_state_comes_back(name: str) -> None:
    recipe = _recipe(name, scale="minmax")
    model = recipe.build(SENSORS)
    model.score_learn(SLOTS, VALUES, TIMES)
    state = model.snapshot(np.array([0, 1]))
    assert state["object"][1] == b""
    other = recipe.build(SENSORS)
    other.restore(np.array([5, 6]), state)
    odd = np.array([[0.0, 50.0]])
    expected = model.score_learn(SLOTS[:1], odd, TIMES[:1])
    assert np.array_equal(other.score_learn(SLOTS[:1] + 5, odd, TIMES[:1]), expected)


@pytest.mark.parametrize("name", names())
def test_one_missing_value_blinds_no_detector(name: str) -> None:
    values = VALUES.copy()
    values[:150:3, 1], values[1:150:3, 0], values[2:150:7] = np.nan, np.inf, np.nan
    model = _recipe(name).build(SENSORS)
    scores = model.score_learn(SLOTS, np.vstack([values[:-1], [[9.0, 99.0]]]), TIMES)
    assert np.isfinite(scores).all()
    assert scores[-1] > 0


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    recipe = _recipe("HalfSpaceTrees")
    model = recipe.build(SENSORS)
    state = dict(model.snapshot(np.array([0])))
    state["object"] = np.array([pickle.dumps(_Evil(tmp_path / "ran"))], dtype=object)
    with pytest.raises(ValueError, match="not allowed"):
        model.restore(np.array([0]), state)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "builtins.__import__",
        "builtins.open",
        "importlib.import_module",
        "river.datasets.HTTP",
        "river.compose.FuncTransformer",
        "river.utils.rolling.typing.sys.modules",
        "river.stats.base.abc.ABC",
        "river.linear_model.base.np.load",
    ],
)
def test_only_rivers_own_classes_can_be_named(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    for split in range(1, name.count(".") + 1):
        parts = name.split(".")
        module, attribute = ".".join(parts[:split]), ".".join(parts[split:])
        dotted = b"\x80\x05" + b"".join(
            b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute)
        )
        with pytest.raises(StateRejected):
            restricted_loads(dotted + b"\x93.")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x05.", pickle.dumps([1])[:-2]])
def test_damaged_state_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(StateRejected, match="damaged"):
        restricted_loads(data)


@pytest.mark.parametrize("data", [pickle.dumps((1, None, 2)), pickle.dumps("text"), "text", None])
def test_state_of_something_else_is_refused(data: object) -> None:
    model = _recipe("LODA").build(SENSORS)
    state = dict(model.snapshot(np.array([0])))
    state["object"] = np.array([None], dtype=object)
    state["object"][0] = data
    with pytest.raises(ValueError, match="state is not"):
        model.restore(np.array([0]), state)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"river": "HalfSpaceTree"}, 'Did you mean "HalfSpaceTrees"'),
        ({"river": "ThresholdFilter"}, "is a filter"),
        ({"river": "LODA", "settings": {"n_bin": 3}}, 'Did you mean "n_bins"'),
        ({"river": "LODA", "settings": {"n_bins": "many"}}, "must be a whole number"),
        ({"river": "LODA", "settings": {"n_bins": True}}, "must be a whole number"),
        ({"river": "LODA", "settings": {"n_bins": 0}}, "must be positive"),
        ({"river": "OneClassSVM", "settings": {"nu": float("nan")}}, "must be positive"),
        ({"river": "OneClassSVM", "settings": {"optimizer": "SGD"}}, "takes a Python object"),
        ({"river": "HalfSpaceTrees", "settings": {"height": 30}}, "nodes per key"),
        ({"river": "HalfSpaceTrees", "settings": {"limits": {"x": [1]}}}, r"must map sensors to \[lower"),
        ({"river": "GaussianScorer"}, "name it as target"),
        ({"river": "LODA", "target": "x"}, "leave target out"),
    ],
)
def test_mistakes_in_settings_are_found_before_any_reading(data: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(data, River)


def test_an_unknown_target_or_limit_is_refused() -> None:
    with pytest.raises(ValueError, match='"z" is not a sensor'):
        River(river="GaussianScorer", target="z").build(SENSORS)
    with pytest.raises(ValueError, match='"z" is not a sensor'):
        River(river="HalfSpaceTrees", settings={"limits": {"z": [0, 1]}}).build(SENSORS)
