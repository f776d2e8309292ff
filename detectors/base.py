"""The detector contract: a recipe builds a model, a model is a table of arrays and one kernel.

A *detector* is a recipe: frozen, validated settings. Its `build` makes a *model*, which holds the state of
many keys (machines) at once. Every state array has the slot, the small integer that stands for a key, as its
first axis; so a snapshot of some keys is a row selection and a thousand machines cost one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = [
    "ChoosingModel",
    "Contributions",
    "Detector",
    "ExampleModel",
    "Floats",
    "ForgettingModel",
    "Mask",
    "Model",
    "ModelUnavailable",
    "Rows",
    "Slots",
    "StretchModel",
    "Stretches",
    "TrainableDetector",
    "Weights",
]

Floats = NDArray[np.float64]
Slots = NDArray[np.int64]
Mask = NDArray[np.bool_]
Rows = Mapping[str, NDArray[Any]]
"""State of some keys by name: arrays whose first axis is the key, in the order of the slots asked for."""


class Contributions(NamedTuple):
    """Why rows scored as they did, sensor by sensor.

    `shares` (k, n_sensors) sums to 1 in absolute value per row; the sign is the direction of the deviation
    (positive: higher than expected). All zero where the model cannot say. `expected` (k, n_sensors) is the
    value the model expected, in the sensor's unit, NaN where it has none.
    """

    shares: Floats
    expected: Floats


class Stretches(NamedTuple):
    """What the last readings up to a row were compared with as a whole.

    `readings` (k,): how many, the row's own among them; 0 where none were compared. `since` (k,): epoch seconds of
    the first. `rank` (k,): 1 where compared with the most similar stretch of the past, 2 with the second; 0 where it
    is their mean that was, with a normal one: in it older readings count less, so that `since` is NaN.
    `distances` (k, n_sensors): how far from that, as root mean square, and `shifts` (k, n_sensors): as mean, above
    it positive; `largest` (k, n_sensors): the largest single difference, signed, and `usual` (k, n_sensors): what was
    compared there. In the sensor's unit, NaN of sensors that were not compared.
    """

    readings: NDArray[np.int64]
    since: Floats
    rank: NDArray[np.int64]
    distances: Floats
    shifts: Floats
    largest: Floats
    usual: Floats

    @classmethod
    def none(cls, count: int, width: int) -> Stretches:
        """Of so many rows of so many sensors, none compared."""
        whole, unknown = np.zeros(count, np.int64), np.full((count, width), np.nan)
        return cls(whole, np.zeros(count), whole.copy(), *(unknown.copy() for _ in range(4)))


@runtime_checkable
class Model(Protocol):
    """What was learned or loaded, for many keys at once.

    Attributes: `sensors`, the names of the columns of `values`, in order; `threshold`, the score from which
    a reading counts as anomalous. Scores are finite, >= 0, higher is more anomalous; 0 while warming up. It may have
    `warmup_readings`, an int: so many first readings of a key score 0, at least; none is as 0.
    """

    sensors: tuple[str, ...]
    threshold: float

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) of readings in arrival order: each row is scored by its key's state, then learned.

        `slots` (n,) names the key of each row, in any mix; a slot never seen before starts fresh and the
        tables grow as needed. `values` (n, n_sensors), NaN marks a missing sensor: the model degrades to the
        others and its state stays finite. `times` (n,) epoch seconds. `learn` (n,): where it is
        False the reading is scored and remembered as the recent past, as far as the next scores need that, but
        what counts as normal stays as it is; None learns all. Splitting a call anywhere gives the
        same scores and the same state. Inputs may be read-only and are never kept or changed.
        """
        ...

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Reasons for the given row indices (k,) of the latest `score_learn` call.

        They refer to the state before each row was learned, so they do not depend on batch boundaries.
        Called only for rows that open, update or close an alert.
        """
        ...

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the state rows of these slots: arrays of fixed dtype and row shape, same names always.

        Object arrays of `bytes` are allowed where a row has no fixed size. A model without state per key
        returns an empty mapping.
        """
        ...

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back rows that `snapshot` returned, growing the tables as needed. Raises ValueError on a mismatch."""
        ...


@runtime_checkable
class ExampleModel(Protocol):
    """What a model offers besides that compares readings with examples of normal: how far the nearest one is."""

    def nearest_distances(self, rows: NDArray[np.int64]) -> Floats:
        """Distance (k,) to the nearest example for row indices (k,) of the latest `score_learn` call; >= 0.

        NaN where there was none to compare with. In the unit in which the model measures, which its docstring
        names. Asked for together with `contributions`, and as independent of batch boundaries.
        """
        ...


@runtime_checkable
class StretchModel(Protocol):
    """What a model offers besides that compares a row's last readings as a whole."""

    def stretches(self, rows: NDArray[np.int64]) -> Stretches:
        """For row indices (k,) of the latest `score_learn` call; asked for together with `contributions`, whose
        `expected` is the last value of the stretch compared with, and as independent of batch boundaries."""
        ...


@runtime_checkable
class ChoosingModel(Protocol):
    """What a model offers besides that chooses, key by key, how it scores: what it chose, and why."""

    def explain(self, slot: int) -> str:
        """One line: the family taken and the reason, or how long it will go on looking."""
        ...


@runtime_checkable
class ForgettingModel(Protocol):
    """What a model offers besides that gathers evidence over readings: to drop what a sick sensor left in it."""

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """Of these keys (k,), drop what the latest readings of these sensors (n_sensors,) have gathered: sums,
        averages, what the next readings would be compared together with. What is normal stays as it is.

        Called where a sensor is found to be sick, before the first reading in which it is masked for that: what it
        said until then is no evidence of its machine.
        """
        ...


class ModelUnavailable(Exception):
    """Raised by `score_learn` where a model that runs elsewhere does not answer: these readings get no score of it,
    and its state is as it was before."""


class Detector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of every recipe. Subclasses add their own and implement `build`."""

    kind: ClassVar[str] = ""
    """The name in a topology file, such as `adaptive_z`."""
    relative: ClassVar[float] = 0.0
    """Above 0: it depends on the sensors and the data how high scores of normal readings reach. Where no threshold is
    stated, a reading is then anomalous from the kind's own default, but not where so rare (-log10 of a probability)
    a normal reading of its machine scores as high."""

    threshold: float | None = None
    """Score from which a reading is anomalous; None takes the kind's own default (see `relative`)."""
    inputs: tuple[str, ...] = ()
    """The sensors and features that it is shown, in this order; none named: all of them."""
    machines: str | tuple[str, ...] = ()
    """The machines that it scores, as a pattern (`pump-*`) or several; none named: all of them."""

    def build(self, sensors: tuple[str, ...]) -> Model:
        """A fresh model for these sensors (the columns of `values`, in order)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Weights:
    """A trained model as plain data: what the registry stores and what `build_trained` turns into a Model.

    `arrays` are numeric numpy arrays (no objects); `settings` is JSON data (the recipe's); `threshold` was
    """

    kind: str
    sensors: tuple[str, ...]
    threshold: float
    settings: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class TrainableDetector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recipe of a detector that is trained before it runs: `fit` makes weights, weights make a model.

    What is normal stays as trained, whatever the `learn` mask says. A model may remember its keys' recent past,
    as far as its next scores need that, as state per key that is a function of their last readings. The next
    version of a model takes that over where its arrays are the same, so let their shapes depend on the sensors
    alone.
    """

    kind: ClassVar[str] = ""

    quantile: float = 0.999
    """The threshold is this quantile of the training scores, 0 to 1."""

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on rows of sensors (columns, in order; rows with NaN are left out). Raises ValueError if too few."""
        raise NotImplementedError

    @classmethod
    def load(cls, weights: Weights) -> Model:
        """The model these weights describe, without unpickling. Raises ValueError on weights that do not fit."""
        raise NotImplementedError
