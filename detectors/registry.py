"""Every detector by its kind, the name topology files and stored weights use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
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

__all__ = ["ADAPTERS", "ONLINE", "TRAINABLE", "installed", "load", "load_installed"]

_GROUP = "mmlw.detectors"
"""Entry points by which an installed distribution brings online kinds of its own."""

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


def installed() -> Mapping[str, EntryPoint]:
    """The online kinds that other installed distributions bring, by name; nothing of them is imported.

    A topology names a kind and never a module: which code may run is decided by who installs it. The names of
    our own kinds stay ours."""
    found = entry_points(group=_GROUP)
    return {point.name: point for point in found if point.name not in (*ONLINE, *TRAINABLE)}


def load_installed(kind: str) -> type[Detector]:
    """The recipe of a kind in `installed`. Imports it; raises ValueError where that fails or is no recipe."""
    point = installed()[kind]
    whose = f'{point.dist.name if point.dist else "?"}: entry point "{kind} = {point.value}" of {_GROUP}'
    givers = sorted({other.dist.name for other in entry_points(group=_GROUP, name=kind) if other.dist})
    if len(givers) > 1:
        raise ValueError(f'the kind "{kind}" is brought by {" and ".join(givers)}: uninstall all but one')
    try:
        recipe = point.load()
    except Exception as error:  # whatever somebody else's module raises
        raise ValueError(f"{whose} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(recipe, type) or not issubclass(recipe, Detector):
        raise ValueError(f"{whose} is no subclass of detectors.base.Detector")
    if recipe.kind != kind:
        raise ValueError(f'{whose} calls itself kind "{recipe.kind}": give both one name')
    return recipe


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
