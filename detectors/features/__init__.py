"""What detectors may look at besides the readings themselves: declared features, and a key's recent readings."""

from __future__ import annotations

from detectors.features.declared import Band, Change, Crossings, Feature, Lag, Rate, Rolling
from detectors.features.kinds import FEATURES
from detectors.features.program import columns_of, definitions
from detectors.features.recent import RecentWindow
from detectors.features.relations import Calendar, Correlation, Difference, Product, Ratio, Sum
from detectors.features.table import FeatureTable

__all__ = [
    "FEATURES",
    "Band",
    "Calendar",
    "Change",
    "Correlation",
    "Crossings",
    "Difference",
    "Feature",
    "FeatureTable",
    "Lag",
    "Product",
    "Rate",
    "Ratio",
    "RecentWindow",
    "Rolling",
    "Sum",
    "columns_of",
    "definitions",
]
