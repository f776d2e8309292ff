"""Models as a topology has them: calibrated, bound to machines, and deciding alone or together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from detectors.base import Model
from detectors.calibration import Calibration
from detectors.openings import Openings
from stream.alerts import ModelInfo
from stream.binding import Binding
from stream.ensemble import Ensemble, Lane
from stream.inputs import timed_columns
from stream.rules import COMBINED
from stream.topology import Topology

__all__ = ["LIMITER", "Assembly"]

_DEFAULT_PROBABILITY = 1e-4
LIMITER = Calibration(warmup=120, largest_shape=0.0)
"""Finds the score that hardly a normal reading reaches, where a detector's own threshold is relative. A tail of heavy
shape, fitted to so few scores, would put it out of a fault's reach."""


class Assembly:
    """Makes what scores and what decides for one topology."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def lane(self, name: str, model: Model, info: ModelInfo) -> Lane:
        """A detector with what makes a probability of its scores, where they are calibrated."""
        topology, stated = self._topology, self._topology.detectors[name].threshold
        shown, inputs = topology.inputs(name), None
        if shown != topology.columns:
            inputs = np.array([topology.columns.index(column) for column in shown], np.int64)
        machines = topology.detectors[name].machines
        binding = Binding(machines) if machines else None
        trained = name in topology.registry_models
        timed = np.isin(shown, sorted(timed_columns(topology.features)))
        after = getattr(model, "warmup_readings", 0)
        if topology.calibration is not None:
            calibrator = topology.calibration.build(info.digest if trained else "", after=after)
            return Lane(
                name, model, info, self._improbable(), calibrator, inputs, binding, trained, timed=timed
            )
        limit = model.threshold if stated is None else stated
        rarely = topology.limited.get(name, 0.0)
        limiter = LIMITER.build(after=after) if rarely else None
        return Lane(name, model, info, limit, None, inputs, binding, trained, limiter, rarely, timed)

    def _improbable(self) -> float:
        return -math.log10(self._topology.alert.probability or _DEFAULT_PROBABILITY)

    def ensembles(self, lanes: Mapping[str, Lane]) -> dict[str, Ensemble]:
        """Each detector for itself, or all together."""
        if self._topology.combine is None or self._topology.calibration is None:
            return {name: self.ensemble(name, [lane]) for name, lane in lanes.items()}
        return {COMBINED: self.ensemble(COMBINED, list(lanes.values()))}

    def ensemble(self, name: str, lanes: Sequence[Lane], further: int = 0) -> Ensemble:
        """What decides over these lanes, which are shown so many columns besides the topology's."""
        topology = self._topology
        floors = np.zeros(len(topology.columns) + further)
        floors[: len(topology.source.names)] = [sensor.min_deviation for sensor in topology.source.sensors]
        common = (topology.alert, topology.learning, floors)
        openings = Openings(topology.alert.openings) if topology.alert.budget is not None else None
        if topology.combine is None or topology.calibration is None:
            return Ensemble(name, lanes, *common, openings=openings)
        return Ensemble(
            name,
            lanes,
            *common,
            combination=topology.combine,
            threshold=self._improbable(),
            calibrator=topology.calibration.build() if topology.combine.calibrate else None,
            openings=openings,
        )
