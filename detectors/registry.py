"""Every detector by its kind, the name topology files and stored weights use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from detectors.adaptive_windows import ADWIN
from detectors.autoencoder import Autoencoder
from detectors.automatic import Auto
from detectors.autoregressive import Autoregressive
from detectors.base import Detector, Model, TrainableDetector, Weights
from detectors.control_charts import MCUSUM, MEWMA
from detectors.cuts import RandomCutForest
from detectors.density import LocalOutlierFactor, TrainedKNN
from detectors.discords import LeftMatrixProfile
from detectors.envelope import EllipticEnvelope
from detectors.forest import HalfSpaceTrees
from detectors.holt_winters import HoltWinters
from detectors.isolation import IsolationForest
from detectors.kernels import ready
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
from detectors.statistical import AdaptiveZ
from detectors.subspace import PCA
from detectors.two_samples import KSWIN

__all__ = ["ADAPTERS", "ONLINE", "TRAINABLE", "load"]

ONLINE: Mapping[str, type[Detector]] = MappingProxyType(
    {
        recipe.kind: recipe
        for recipe in (
            ADWIN,
            CUSUM,
            KNN,
            KSWIN,
            LODA,
            AdaptiveZ,
            Auto,
            Autoregressive,
            HalfSpaceTrees,
            HoltWinters,
            LeftMatrixProfile,
            MCUSUM,
            MEWMA,
            PageHinkley,
            Mahalanobis,
            OnlinePCA,
            PyOD,
            RandomCutForest,
            River,
            RobustZ,
            SeasonalProfile,
        )
    }
)
TRAINABLE: Mapping[str, type[TrainableDetector]] = MappingProxyType(
    {
        recipe.kind: recipe
        for recipe in (
            ONNX,
            PCA,
            Autoencoder,
            EllipticEnvelope,
            ExponentialSmoothing,
            IsolationForest,
            LocalOutlierFactor,
            TrainedKNN,
        )
    }
)

ADAPTERS = frozenset({"pyod", "river"})
"""Online kinds that stand for a whole library: a topology names them by what they take from it, `river: LODA`."""


def load(weights: Weights) -> Model:
    """The model that weights describe, its kernels compiled. Raises ValueError on an unknown kind and on weights that
    do not fit.

    >>> load(Weights("oracle", ("x",), 1.0, {}, {}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown kind of model "oracle"; known: ...elliptic_envelope, ...
    """
    if weights.kind not in TRAINABLE:
        raise ValueError(f'unknown kind of model "{weights.kind}"; known: {", ".join(sorted(TRAINABLE))}')
    ready()
    return TRAINABLE[weights.kind].load(weights)
