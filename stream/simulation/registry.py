"""The simulated registry, and the model that it has versions of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.base import Contributions, Floats, Mask, Model, Rows, Slots
from stream.errors import ModelNotFound, RegistryUnreachable
from stream.models import ModelRef, ModelVersion
from stream.simulation.schedule import KILLER, ODD, RAISING

if TYPE_CHECKING:
    from stream.simulation.world import World

__all__ = ["SimulatedShelf"]


class _Scale:
    """A batch model of one number: the score is the first sensor's size times it. One reading kills the process."""

    threshold = 60.0

    def __init__(self, world: World, factor: float, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self._world = world
        self._factor = factor

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        if (values[:, 0] == KILLER).any():
            self._world.outcome.killed += 1
            self._world.die()
        if (values[:, 0] == RAISING).any():
            raise ArithmeticError("simulated: over this reading")
        scores: Floats = np.nan_to_num(np.abs(values[:, 0])) * self._factor
        scores[values[:, 0] == ODD] = np.nan
        return scores

    def contributions(self, rows: Any) -> Contributions:
        return Contributions(
            np.zeros((len(rows), len(self.sensors))), np.full((len(rows), len(self.sensors)), np.nan)
        )

    def snapshot(self, slots: Slots) -> Rows:
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        return None


class SimulatedShelf:
    """The registry: version n of `scale` scores n times the first sensor."""

    def __init__(self, world: World) -> None:
        self._world = world

    def resolve(self, uri: str) -> ModelRef:
        """See `Shelf`."""
        self._world.fail_if_dead()
        version = self._world.champion if uri.endswith("@champion") else int(uri.rpartition("/")[2])
        if version == 7:
            raise ModelNotFound("simulated: no such version")
        if version == 8:
            raise RegistryUnreachable("simulated: the registry does not answer")
        return _ref(version)

    def meaning(self, name: str, alias: str) -> ModelVersion:
        """See `Shelf`."""
        if self._world.strike("ask", False) is not None:
            raise RegistryUnreachable("simulated: the registry does not answer")
        ref = _ref(self._world.champion)
        if self._world.strike("ask", True) is not None:
            raise RegistryUnreachable("simulated: the registry's answer was lost")
        self._world.looks += 1
        return ModelVersion(ref.version, (alias,), 0.0, "", {}, ref)

    def point(self, ref: ModelRef, alias: str) -> None:
        """See `Shelf`."""
        self._world.fail_if_dead()
        self._world.move_alias(ref.version, ours=True)

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        """See `Shelf`."""
        self._world.fail_if_dead()
        return _Scale(self._world, float(ref.version), tuple(sensors))


def _ref(version: int) -> ModelRef:
    return ModelRef("scale", version, f"sha256:{version:064x}", "scale", f"models:/scale/{version}")
