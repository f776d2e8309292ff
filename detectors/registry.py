"""Every detector by its kind, the name topology files and stored weights use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from detectors.base import Detector, Model, TrainableDetector, Weights
from detectors.forest import HalfSpaceTrees
from detectors.statistical import AdaptiveZ

__all__ = ["ONLINE", "TRAINABLE", "load"]

ONLINE: Mapping[str, type[Detector]] = MappingProxyType(
    {kind.kind: kind for kind in (AdaptiveZ, HalfSpaceTrees)}
)
TRAINABLE: Mapping[str, type[TrainableDetector]] = MappingProxyType({})


def load(weights: Weights) -> Model:
    """The model that weights describe. Raises ValueError on an unknown kind and on weights that do not fit."""
    if weights.kind not in TRAINABLE:
        raise ValueError(f'unknown kind of model "{weights.kind}"; known: {", ".join(sorted(TRAINABLE))}')
    return TRAINABLE[weights.kind].load(weights)
