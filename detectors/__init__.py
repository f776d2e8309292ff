"""Anomaly detectors: arrays in, arrays out; no input or output, no clock, nothing of the stream."""

from __future__ import annotations

from detectors.adaptive_windows import ADWIN
from detectors.autoencoder import Autoencoder
from detectors.automatic import Auto
from detectors.autoregressive import Autoregressive
from detectors.base import (
    Contributions,
    Detector,
    ExampleModel,
    ForgettingModel,
    Model,
    Stretches,
    StretchModel,
    TrainableDetector,
    Weights,
)
from detectors.calibration import Calibration, Calibrator
from detectors.checks import check_model
from detectors.control_charts import MCUSUM, MEWMA
from detectors.cuts import RandomCutForest
from detectors.density import LocalOutlierFactor, TrainedKNN
from detectors.discords import LeftMatrixProfile
from detectors.envelope import EllipticEnvelope
from detectors.features import RecentWindow
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
from detectors.quality import EventQuality, event_quality, events, roc_auc, vus_pr
from detectors.registry import ONLINE, TRAINABLE, load
from detectors.river import River
from detectors.smoothing import ExponentialSmoothing
from detectors.statistical import AdaptiveZ
from detectors.subspace import PCA
from detectors.two_samples import KSWIN

__all__ = [
    "ADWIN",
    "CUSUM",
    "KNN",
    "KSWIN",
    "LODA",
    "MCUSUM",
    "MEWMA",
    "ONLINE",
    "ONNX",
    "PCA",
    "TRAINABLE",
    "AdaptiveZ",
    "Auto",
    "Autoencoder",
    "Autoregressive",
    "Calibration",
    "Calibrator",
    "Contributions",
    "Detector",
    "EllipticEnvelope",
    "EventQuality",
    "ExampleModel",
    "ExponentialSmoothing",
    "ForgettingModel",
    "HalfSpaceTrees",
    "HoltWinters",
    "IsolationForest",
    "LeftMatrixProfile",
    "LocalOutlierFactor",
    "Mahalanobis",
    "Model",
    "OnlinePCA",
    "PageHinkley",
    "PyOD",
    "RandomCutForest",
    "RecentWindow",
    "River",
    "RobustZ",
    "SeasonalProfile",
    "StretchModel",
    "Stretches",
    "TrainableDetector",
    "TrainedKNN",
    "Weights",
    "check_model",
    "event_quality",
    "events",
    "load",
    "roc_auc",
    "vus_pr",
]
