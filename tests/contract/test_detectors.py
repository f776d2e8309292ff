"""Every detector keeps the model contract, and the contract's own checks catch models that do not."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from detectors import registry
from detectors.adaptive_windows import ADWIN
from detectors.autoencoder import Autoencoder
from detectors.automatic import Auto
from detectors.autoregressive import Autoregressive
from detectors.base import Floats, Mask, Slots
from detectors.checks import CHECKS, TRAINED_CHECKS, Build, Check, ContractBroken, check_model
from detectors.control_charts import MCUSUM, MEWMA
from detectors.cuts import RandomCutForest
from detectors.density import LocalOutlierFactor, TrainedKNN
from detectors.discords import LeftMatrixProfile
from detectors.envelope import EllipticEnvelope
from detectors.forest import HalfSpaceTrees
from detectors.holt_winters import HoltWinters
from detectors.isolation import IsolationForest
from detectors.level_shifts import CUSUM, PageHinkley
from detectors.mahalanobis import Mahalanobis
from detectors.medians import RobustZ
from detectors.neighbours import KNN
from detectors.online_pca import OnlinePCA
from detectors.onnx import ONNX
from detectors.profiles import SeasonalProfile
from detectors.projections import LODA
from detectors.pyod import PyOD
from detectors.river import River
from detectors.smoothing import ExponentialSmoothing
from detectors.statistical import AdaptiveZ, AdaptiveZModel
from detectors.subspace import PCA
from detectors.two_samples import KSWIN
from tests import onnx_files

SENSORS = ("pressure", "flow", "current")


FRAME = pd.DataFrame(np.random.default_rng(1).normal(size=(300, 3)) + np.arange(3), columns=list(SENSORS))


def _trained(kind: str, **settings: Any) -> Build:
    weights = registry.TRAINABLE[kind](**settings).fit(FRAME)
    return lambda: registry.load(weights)


def _trained_file(model: Any, **settings: Any) -> Build:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(model.SerializeToString())
        weights = ONNX(file=str(file), **settings).fit(FRAME)
    return lambda: registry.load(weights)


ONLINE: dict[str, Build] = {
    "adaptive_z": lambda: AdaptiveZ(warmup=5, half_life=20).build(SENSORS),
    "robust_z": lambda: RobustZ(window=20, warmup=8).build(SENSORS),
    "robust_z_odd": lambda: RobustZ(window=5, warmup=5, floor=0.5).build(SENSORS),
    "cusum": lambda: CUSUM(warmup=20, threshold=6.0, patience=10).build(SENSORS),
    "cusum_frozen": lambda: CUSUM(warmup=20, half_life=None, slack=0.2).build(SENSORS),
    "page_hinkley": lambda: PageHinkley(warmup=20, threshold=4.0).build(SENSORS),
    "page_hinkley_forgetting": lambda: PageHinkley(warmup=20, forget=0.9, half_life=10, threshold=6.0).build(
        SENSORS
    ),
    "adwin": lambda: ADWIN(warmup=10, delta=0.99).build(SENSORS),
    "adwin_span": lambda: ADWIN(warmup=20, max_window=100, span=10.0).build(SENSORS),
    "kswin": lambda: KSWIN(window=30, recent=10, threshold=1.5).build(SENSORS),
    "kswin_short": lambda: KSWIN(window=20, recent=10, threshold=2.0, seed=7).build(SENSORS),
    "knn": lambda: KNN(k=2, capacity=20, warmup=5, patience=5, horizon=30).build(SENSORS),
    "knn_sliding": lambda: KNN(k=1, capacity=8, warmup=5, reservoir="sliding").build(SENSORS),
    "loda": lambda: LODA(n_projections=8, n_bins=12, warmup=6, half_life=20, patience=5).build(SENSORS),
    "random_cut_forest": lambda: RandomCutForest(n_trees=4, tree_size=8).build(SENSORS),
    "random_cut_forest_shingled": lambda: RandomCutForest(n_trees=4, tree_size=8, shingle=3).build(SENSORS),
    "auto": lambda: Auto(look=30).build(SENSORS),
    "autoregressive": lambda: Autoregressive(order=2, warmup=8, half_life=30).build(SENSORS),
    "autoregressive_one": lambda: Autoregressive(order=1, warmup=5, half_life=500).build(SENSORS),
    "auto_one": lambda: Auto(look=30).build(SENSORS[:1]),
    "half_space_trees": lambda: HalfSpaceTrees(window_size=20, n_trees=5).build(SENSORS),
    "half_space_trees_unscaled": lambda: HalfSpaceTrees(
        window_size=20, n_trees=5, scale="none", limits={"flow": (-5.0, 30.0)}
    ).build(SENSORS),
    "holt_winters": lambda: HoltWinters(warmup=5, half_life=20).build(SENSORS),
    "holt_winters_seasonal": lambda: HoltWinters(warmup=5, half_life=20, season=4).build(SENSORS),
    "left_matrix_profile": lambda: LeftMatrixProfile(length=4, history=40).build(SENSORS),
    "left_matrix_profile_values": lambda: LeftMatrixProfile(length=1, history=40).build(SENSORS),
    "left_matrix_profile_2nd": lambda: LeftMatrixProfile(length=4, neighbours=2, history=40).build(SENSORS),
    "mewma": lambda: MEWMA(warmup=20, rate=0.5).build(SENSORS),
    "mewma_t2": lambda: MEWMA(warmup=20, rate=0.5, statistic="t2").build(SENSORS),
    "hotelling": lambda: MEWMA(warmup=20, rate=1.0, statistic="t2", half_life=None).build(SENSORS),
    "online_pca": lambda: OnlinePCA(warmup=20, refresh=7, half_life=60, variance=0.6).build(SENSORS),
    "online_pca_all": lambda: OnlinePCA(warmup=20, refresh=1, half_life=60, variance=1.0).build(SENSORS),
    "mahalanobis": lambda: Mahalanobis(warmup=20, half_life=60).build(SENSORS),
    "mahalanobis_one": lambda: Mahalanobis(warmup=20, half_life=60).build(SENSORS[:1]),
    "mcusum": lambda: MCUSUM(warmup=20, block=4).build(SENSORS),
    "mcusum_t2": lambda: MCUSUM(warmup=20, block=4, statistic="t2").build(SENSORS),
    "seasonal_profile": lambda: SeasonalProfile(period=1800, bins=4).build(SENSORS),
    "seasonal_profile_young": lambda: SeasonalProfile(period=3000, bins=7, half_life=3, warmup=1).build(
        SENSORS
    ),
    "pyod_ecod": lambda: PyOD(pyod="ECOD", window=20, warmup=15, refit=25).build(SENSORS),
    "pyod_knn": lambda: PyOD(
        pyod="KNN", settings={"n_neighbors": 3}, window=20, warmup=15, refit=7, scale="none"
    ).build(SENSORS),
    "river_half_space_trees": lambda: River(
        river="HalfSpaceTrees",
        settings={"window_size": 20, "n_trees": 2, "height": 3},
        scale="minmax",
        warmup=5,
    ).build(SENSORS),
    "river_loda": lambda: River(river="LODA", settings={"n_random_cuts": 5}, warmup=5).build(SENSORS),
    "river_lof": lambda: River(river="LocalOutlierFactor", settings={"n_neighbors": 3}, warmup=5).build(
        SENSORS
    ),
    "river_svm": lambda: River(river="OneClassSVM", scale="standard", warmup=5).build(SENSORS),
    "river_gaussian": lambda: River(
        river="GaussianScorer", target="flow", settings={"grace_period": 5}, warmup=5
    ).build(SENSORS),
    "river_sad": lambda: River(river="StandardAbsoluteDeviation", target="flow", warmup=5).build(SENSORS),
    "river_pad": lambda: River(river="PredictiveAnomalyDetection", target="flow", warmup=5).build(SENSORS),
}
TRAINED: dict[str, Build] = {
    kind: _trained(kind)
    for kind in (
        IsolationForest.kind,
        PCA.kind,
        EllipticEnvelope.kind,
        LocalOutlierFactor.kind,
        TrainedKNN.kind,
        Autoencoder.kind,
        ExponentialSmoothing.kind,
    )
}
TRAINED["exponential_smoothing_seasonal"] = _trained(ExponentialSmoothing.kind, season=6)
TRAINED["onnx"] = _trained_file(onnx_files.rebuilds())
TRAINED["onnx_score"] = _trained_file(onnx_files.scores(), gives="score", anomalous="low")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("build", ONLINE.values(), ids=ONLINE)
def test_online_detector_keeps_the_contract(build: Build, check: Check) -> None:
    check(build, 0)


@pytest.mark.parametrize(
    "check", [*CHECKS.values(), *TRAINED_CHECKS.values()], ids=[*CHECKS, *TRAINED_CHECKS]
)
@pytest.mark.parametrize("build", TRAINED.values(), ids=TRAINED)
def test_trained_detector_keeps_the_contract(build: Build, check: Check) -> None:
    check(build, 0)


def test_every_kind_of_the_registry_is_checked() -> None:
    assert set(registry.TRAINABLE) <= set(TRAINED)
    assert all(any(name.startswith(kind) for kind in registry.TRAINABLE) for name in TRAINED)
    assert all(any(name.startswith(kind) for name in ONLINE) for kind in registry.ONLINE)
    assert all(recipe.kind == kind for kind, recipe in registry.ONLINE.items())
    assert all(recipe.kind == kind for kind, recipe in registry.TRAINABLE.items())


@pytest.mark.parametrize("kind", [*registry.ONLINE, *registry.TRAINABLE])
def test_every_kind_names_its_source(kind: str) -> None:
    """A publication's year, or a specification."""
    recipe = registry.ONLINE.get(kind) or registry.TRAINABLE[kind]
    assert re.search(r"\b(1[89]|20)\d\d\b|Specification", inspect.getdoc(recipe) or "")


class _Broken(AdaptiveZModel):
    def __init__(self) -> None:
        super().__init__(AdaptiveZ(warmup=5), SENSORS)


class _Negative(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return super().score_learn(slots, values, times, learn) - 1.0


class _LooksAtTheBatch(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return super().score_learn(slots, values, times, learn) + len(slots)


class _SharesKeys(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return super().score_learn(np.zeros_like(slots), values, times, learn)


class _LooksAhead(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return super().score_learn(slots, values, times, learn) + (np.nanmean(values) > 100.0)


class _WritesIntoValues(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        scores = super().score_learn(slots, values, times, learn)
        values[:] = 0.0
        return scores


class _LearnsOnlySmallSlots(_Broken):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        if (slots > 1000).any():
            self._table["mean"][:] = 0.0
        return super().score_learn(slots, values, times, learn)


BROKEN: dict[str, tuple[Callable[[], AdaptiveZModel], str]] = {
    "negative": (_Negative, "scores_are_finite"),
    "batch": (_LooksAtTheBatch, "splits_do_not_matter"),
    "keys": (_SharesKeys, "keys_are_independent"),
    "future": (_LooksAhead, "the_future_does_not_matter"),
    "growth": (_LearnsOnlySmallSlots, "tables_grow"),
}


@pytest.mark.parametrize(("build", "check"), BROKEN.values(), ids=BROKEN)
def test_checks_catch_a_broken_model(build: Build, check: str) -> None:
    with pytest.raises(ContractBroken):
        CHECKS[check](build, 0)
    with pytest.raises(ContractBroken):
        check_model(build)


def test_checks_catch_a_model_that_writes_into_its_input() -> None:
    with pytest.raises((ContractBroken, ValueError)):
        CHECKS["inputs_are_left_alone"](_WritesIntoValues, 0)


class _NeverForgets(AdaptiveZModel):
    def __init__(self) -> None:
        super().__init__(AdaptiveZ(warmup=5, half_life=1e9), SENSORS)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return super().score_learn(slots, values, times)


def test_checks_catch_a_trained_model_whose_state_is_more_than_the_recent_past() -> None:
    with pytest.raises(ContractBroken, match="does not forget"):
        TRAINED_CHECKS["nothing_is_learned"](_NeverForgets, 0)


def test_checks_catch_a_trained_model_that_learns() -> None:
    with pytest.raises(ContractBroken, match="nothing_is_learned"):
        check_model(ONLINE["adaptive_z"], trained=True)
