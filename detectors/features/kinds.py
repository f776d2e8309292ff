"""Every kind of feature by the setting that tells it from the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from detectors.features.declared import Band, Change, Crossings, Feature, Lag, Rate, Rolling
from detectors.features.relations import Calendar, Correlation, Difference, Product, Ratio, Sum

__all__ = ["FEATURES"]

FEATURES: Mapping[str, type[Feature]] = MappingProxyType(
    {
        kind.told_by: kind
        for kind in (
            Rolling,
            Lag,
            Change,
            Rate,
            Band,
            Crossings,
            Ratio,
            Difference,
            Product,
            Sum,
            Correlation,
            Calendar,
        )
    }
)
