"""Detectors that make one decision: one alone, or all combined. Scores, what is learned of them, alert events."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.base import (
    Contributions,
    ExampleModel,
    Floats,
    ForgettingModel,
    Mask,
    Model,
    ModelUnavailable,
    Rows,
    Slots,
    StretchModel,
)
from detectors.calibration import Calibrator
from detectors.openings import Openings
from stream import log
from stream.alerting import AlertTable, Event, EventKind, Place
from stream.alerts import ModelInfo
from stream.binding import Binding
from stream.combining import combined, improbability
from stream.readings import Batch
from stream.rules import COMBINED, AlertRule, Combination, Learning

__all__ = ["Decision", "DetectorFailed", "Ensemble", "Lane", "Part", "Stateful", "Why"]


_LARGEST = 30.0
"""As improbable as a calibrated score says."""
_STAYS = 0.5
"""Of the least deviation that opens an alert, what keeps one open: else noise closes it though the fault is there."""
_SILENT = (EventKind.RELEASED, EventKind.SETTLED)
"""Told nobody."""
_SHORTEST = 8
"""Readings tried at once, at least, where alerts open and close all the time."""
_TURNS, _COPIED = 4, 2**20
"""Turns that are judged rather than to copy state of more bytes than this."""


class DetectorFailed(Exception):
    """A detector raised, or gave scores that cannot be: state is no longer to be trusted."""

    def __init__(self, detector: str, detail: str) -> None:
        self.detector = detector
        self.detail = detail
        super().__init__(f'detector "{detector}": {detail}')


class Stateful(Protocol):
    """A table by slot that is part of the checkpoint."""

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        ...

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        ...


@dataclass(slots=True)
class Lane:
    """One detector at work: its model, which one it is, and what makes a probability of its scores."""

    name: str
    model: Model
    info: ModelInfo
    threshold: float
    calibrator: Calibrator | None = None
    inputs: NDArray[np.int64] | None = None
    """Which columns it is shown, None: all."""
    binding: Binding | None = None
    """Which machines it scores, None: all."""
    trained: bool = False
    """Whether the model was trained before: its own threshold holds while a key's calibration warms up."""

    limiter: Calibrator | None = None
    """What finds the score that normal readings of a machine reach so rarely: none below is anomalous."""
    rarely: float = 0.0

    timed: Mask | None = None
    """Which of its columns follow from the time alone, and so tell nothing of the machine; None: none."""

    seconds: float = 0.0
    """What its model took, added up until somebody takes it away."""

    def sees(self, columns: Floats) -> Mask:
        """Which readings, columns (n, n_columns), bring a value that it looks at: of others it has nothing to say."""
        told = np.isfinite(self.shown(columns))
        if self.timed is not None and not self.timed.all():
            told = told[:, ~self.timed]
        return np.asarray(told.any(axis=1), dtype=np.bool_)

    def calibrated(self, slots: Slots, scores: Floats, learn: Mask, limits: Floats) -> tuple[Floats, Mask]:
        """What decides, of scores (n,) and the limits (n,) that it is held against; and where it is no probability
        yet.

        While a key's calibration warms up, a score from the threshold that a model was trained with counts as
        `limits` x score / threshold, and any other as 0."""
        if self.calibrator is None:
            return scores, np.zeros(len(scores), np.bool_)
        surprise = self.calibrator.score_learn(slots, scores, learn, unknown=np.nan)
        unknown = np.isnan(surprise)
        if not unknown.any():
            return surprise, unknown
        standing = np.zeros(len(scores))
        if self.trained and self.model.threshold > 0:
            ratio = scores / self.model.threshold
            standing = np.where(ratio >= 1.0, np.minimum(limits * ratio, _LARGEST), 0.0)
        return np.where(unknown, standing, surprise), unknown

    def limits(self, slots: Slots, scores: Floats, learn: Mask) -> Floats:
        """The least score (n,) that can be anomalous."""
        if self.limiter is None:
            return np.full(len(scores), -np.inf)
        return self.limiter.limits(slots, scores, self.rarely, self.threshold, learn)

    def shown(self, columns: Floats) -> Floats:
        """What it looks at, of columns (n, n_columns)."""
        return columns if self.inputs is None else columns.take(self.inputs, axis=1)

    def looks_at(self, width: int) -> Mask:
        """Which of so many columns it is shown."""
        seen = np.zeros(width, np.bool_)
        seen[slice(None) if self.inputs is None else self.inputs] = True
        return seen

    def forget_recent(self, slots: Slots, columns: Mask) -> None:
        """Drop what these columns (n_columns,) of these keys (k,) left as evidence. Raises DetectorFailed."""
        mine = slots if self.binding is None else slots[self.binding.of(slots)]
        shown = columns if self.inputs is None else columns[self.inputs]
        if not isinstance(self.model, ForgettingModel) or not len(mine) or not shown.any():
            return
        try:
            self.model.forget_recent(mine, shown)
        except Exception as error:  # see `_scored`
            raise DetectorFailed(self.name, f"{type(error).__name__}: {error}") from error

    def reasons(self, rows: NDArray[np.int64], width: int) -> Contributions:
        """The model's, for rows (k,) of its latest call, with a place for each of so many columns."""
        why = self.model.contributions(rows)
        if self.inputs is None:
            return why
        spread = Contributions(np.zeros((len(rows), width)), np.full((len(rows), width), np.nan))
        spread.shares[:, self.inputs], spread.expected[:, self.inputs] = why
        return spread


@dataclass(frozen=True, slots=True)
class Part:
    """Readings to judge, in arrival order. `columns` (n, n_columns): what detectors are shown of them, the sensors
    and their features. The other arrays (n,): where their machine's state is, where they stand in the input, the
    score from which a machine's reading is anomalous (None: the detectors' own), by how much that rises, the
    machine's count of readings, and whether somebody works on the machine."""

    batch: Batch
    columns: Floats
    slots: Slots
    offsets: NDArray[np.int64]
    thresholds: Floats | None
    rise: Floats
    numbers: NDArray[np.int64]
    quiet: Mask
    forgotten: Sequence[tuple[int, Mask]] = ()
    """Slots, and columns (n_columns,) whose sensor is sick from its first reading here on: before that, what they
    left in the detectors is dropped."""

    def select(self, rows: NDArray[np.int64] | Mask) -> Part:
        """Some of the readings."""
        limits = None if self.thresholds is None else self.thresholds[rows]
        return Part(
            self.batch.select(rows),
            self.columns[rows],
            self.slots[rows],
            self.offsets[rows],
            limits,
            self.rise[rows],
            self.numbers[rows],
            self.quiet[rows],
        )


class Why(NamedTuple):
    """Why one reading scored as it did: `shares` and `expected` (n_sensors,) as in `Contributions`, and the distance
    to the nearest normal example, NaN where no detector has one."""

    shares: Floats
    expected: Floats
    nearest: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What an ensemble found in a part: scores (n,) by detector (NaN where it abstains or is unhealthy), its own
    (n,), the thresholds they were held against (n,; infinite where all abstain), and alert events with their
    reasons."""

    scores: Mapping[str, Floats]
    seen: Mapping[str, Mask]
    """By detector, the readings (n,) of which it had a value; of the others it abstains."""
    decided: Floats
    thresholds: Floats
    events: Sequence[tuple[Event, Why]]
    info: ModelInfo
    """Which model decided: of several, those that score the machine."""
    unhealthy: Sequence[str] = ()
    released: Sequence[int] = ()
    """Rows after which other readings of the key are learned than before, without an event."""
    settled: Sequence[int] = ()
    """Rows with which a regime of the key that was accepted is known: calibrations learn from then on."""
    raw: Mapping[str, Floats] = field(default_factory=dict)
    """Scores (n,) of the trained detectors before calibration; NaN where they abstain."""
    learned: Mask | None = None
    """Which readings (n,) were learned: no alert is open, and nobody works on the machine."""


class Ensemble:
    """Lanes and what decides over their scores. `floors` (n_columns,): least deviation that counts. `openings` puts
    thresholds where the rule keeps its budget.

    While an alert of a key is open, its readings are scored but not learned (as `learning` says). A batch is
    tried as if no alert opened or closed within it; where one does, the state before is put back and the
    batch judged in two parts, so the result is that of reading after reading. The next try is as long as that
    part was, and then twice as long each time. Where state is dear to copy, a batch is judged in turns of
    one reading a key.
    """

    def __init__(
        self,
        name: str,
        lanes: Sequence[Lane],
        rule: AlertRule,
        learning: Learning,
        floors: Floats,
        *,
        combination: Combination | None = None,
        threshold: float | None = None,
        calibrator: Calibrator | None = None,
        openings: Openings | None = None,
    ) -> None:
        self.name = name
        self.lanes = tuple(lanes)
        self.alerts = AlertTable(rule, learning.accept_after)
        self._rule = rule
        self._learning = learning
        self._floors = floors
        self._combination = combination
        self._threshold = threshold
        self._calibrator = calibrator
        self._openings = openings
        self._warned = False
        """Whether it was said that alerts are to be rarer than calibration can count."""
        self._parts: dict[tuple[bool, ...], Ensemble] = {}
        """The same with fewer lanes, for machines that the others do not score."""

    @property
    def info(self) -> ModelInfo:
        """Which model decides: the lane's own, or all of them."""
        if self._combination is None:
            return self.lanes[0].info
        together = "+".join(sorted(lane.info.digest for lane in self.lanes))
        return ModelInfo(COMBINED, self._combination.method, together, COMBINED)

    @property
    def threshold(self) -> float:
        """The score from which a reading is anomalous, where no budget says otherwise."""
        return self.lanes[0].threshold if self._threshold is None else self._threshold

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """Every table of state by its name in the checkpoint."""
        yield f"alert:{self.name}", self.alerts
        for lane in self.lanes:
            yield f"model:{lane.name}", lane.model
            if lane.calibrator is not None:
                yield f"calibration:{lane.name}", lane.calibrator
            if lane.limiter is not None:
                yield f"limit:{lane.name}", lane.limiter
        if self._calibrator is not None:
            yield f"calibration:{self.name}", self._calibrator
        if self._openings is not None:
            yield f"budget:{self.name}", self._openings

    def learned(self) -> Iterator[tuple[str, Stateful]]:
        """The tables of what is learned: all but the alerts."""
        return (item for item in self.tables() if item[1] is not self.alerts)

    def judge(self, part: Part, *, careful: bool = False) -> Iterator[tuple[NDArray[np.int64], Decision]]:
        """Score, learn and decide; the rows of each piece of the part, and what was found there. Rows of machines
        that no lane scores are in none.

        `careful`: the part is one reading, and where its score is not finite the state before is put back.
        Raises DetectorFailed."""
        for slot, columns in part.forgotten:
            for lane in self.lanes:
                lane.forget_recent(np.array([slot]), columns)
        if all(lane.binding is None for lane in self.lanes):
            yield from self._judge(part, careful)
            return
        for ensemble, rows in self._by_lanes(part.slots):
            piece = part if len(rows) == len(part.slots) else part.select(rows)
            for some, decision in ensemble._judge(piece, careful):
                yield rows[some], decision

    def scored(self, slots: Slots) -> Mask:
        """Which of these slots (n,) any lane scores."""
        return np.asarray(self._members(slots).any(axis=0), dtype=np.bool_)

    def _members(self, slots: Slots) -> Mask:
        """Which lanes score which slots, (n_lanes, n)."""
        every = np.ones(len(slots), np.bool_)
        return np.array([every if lane.binding is None else lane.binding.of(slots) for lane in self.lanes])

    def _by_lanes(self, slots: Slots) -> Iterator[tuple[Ensemble, NDArray[np.int64]]]:
        """The rows that the same lanes score, with an ensemble of those; they share alerts and calibration."""
        members = self._members(slots)
        if len(members) == 1:
            rows = np.flatnonzero(members[0])
            yield from [(self, rows)] if len(rows) else []
            return
        groups, group_of = np.unique(members, axis=1, return_inverse=True)
        for i, column in enumerate(groups.T):
            if not column.any():
                continue
            key = tuple(column.tolist())
            if key not in self._parts:
                self._parts[key] = copy.copy(self)
                self._parts[key].lanes = tuple(compress(self.lanes, key))
            yield self._parts[key], np.flatnonzero(group_of.ravel() == i)

    def _judge(self, part: Part, careful: bool) -> Iterator[tuple[NDArray[np.int64], Decision]]:
        rows = np.arange(len(part.slots))
        if len(rows) < 2:  # nothing can change within one reading
            yield rows, self._attempt(part, careful)
            return
        counts = np.unique(part.slots, return_counts=True)[1]
        repeated = len(counts) < len(rows) and self._protects()
        if repeated and self._dear(len(counts), int(counts.max())):
            for turn in _turns(part.slots):
                yield rows[turn], self._attempt(part.select(turn), careful)
            return
        if not repeated:
            yield rows, self._attempt(part, careful)
            return
        size = len(rows)
        while len(rows):
            head = rows[:size]
            piece = part.select(head)
            before = self._snapshot(piece.slots)
            decision = self._attempt(piece, careful)
            beyond = _after_a_change(piece.slots, decision)
            if beyond.any():
                self._restore(piece.slots, before)
                decision = self._attempt(piece.select(~beyond), careful)
                rows = np.concatenate([head[beyond], rows[size:]])
                head, size = head[~beyond], max(int((~beyond).sum()), _SHORTEST)
            else:
                rows, size = rows[size:], 2 * size
            yield head, decision

    def _protects(self) -> bool:
        """Whether what is learned depends on alerts at all."""
        learns = any(state for _, state in self._states())
        return learns and not self._learning.while_open and self._rule.close_after > 0

    def _dear(self, machines: int, turns: int) -> bool:
        """Whether the state of so many machines is dear to copy: objects of somebody's library, pickled one by one;
        or more than it costs to judge the batch in so many turns."""
        arrays = [array for _, state in self._states() for array in state.values()]
        size = machines * sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays)
        return any(array.dtype == object for array in arrays) or (turns <= _TURNS and size > _COPIED)

    def _states(self) -> Iterator[tuple[str, Rows]]:
        """What is learned, of no key: names, types and shapes."""
        none = np.zeros(0, dtype=np.int64)
        return ((name, table.snapshot(none)) for name, table in self.learned())

    def _attempt(self, part: Part, careful: bool) -> Decision:
        batch, slots = part.batch, part.slots
        learn = ~part.quiet
        ripe = learn  # of these, what calibrations learn
        if not self._learning.while_open:
            held = self._learning.accept_after
            learn &= ~self.alerts.is_open(slots, batch.times, held)
            ripe = learn & ~self.alerts.is_changing(slots, batch.times, held) if self._protects() else learn
        limits = part.rise + (self.threshold if part.thresholds is None else part.thresholds)
        scores, raw, unhealthy, unknown = {}, {}, [], np.zeros(len(slots), np.bool_)
        seen = {lane.name: lane.sees(part.columns) for lane in self.lanes}
        for lane in self.lanes:
            before = lane.model.snapshot(slots) if careful else {}
            scores[lane.name] = np.full(len(slots), np.nan)
            try:
                found = _scored(lane, part, learn)
            except ModelUnavailable:
                unhealthy.append(lane.name)
                continue
            if not np.isfinite(found).all():
                if not careful:
                    raise DetectorFailed(lane.name, "gave a score that is not finite")
                lane.model.restore(slots, before)
                unhealthy.append(lane.name)  # an infinite score decides as little as none
                continue
            at = np.flatnonzero(seen[lane.name])
            if lane.trained:
                raw[lane.name] = np.where(seen[lane.name], found, np.nan)
            limits[at] = np.maximum(limits[at], lane.limits(slots[at], found[at], learn[at]))
            scores[lane.name][at], early = lane.calibrated(slots[at], found[at], ripe[at], limits[at])
            unknown[at] |= early
        decided, unknown = self._together(scores, slots, ripe, unknown)
        told = np.flatnonzero(np.isfinite(decided))
        if self._openings is not None and len(told):
            known = ~unknown[told]
            kept = self._openings.thresholds(
                slots[told], decided[told], batch.times[told], limits[told], ripe[told] & known
            )
            limits[told] = np.where(known, kept, limits[told])
        limits[~np.logical_or.reduce(list(seen.values()))] = np.inf
        if not self._warned:
            self._warn(limits[np.isfinite(limits) & ~unknown])
        counted, lasting = self._qualified(decided, limits, scores, part)
        place = Place(part.offsets, batch.rows, part.numbers, part.quiet)
        changes = self.alerts.decide(limits, slots, batch.times, counted, place, lasting)
        events = [event for event in changes if event.kind not in _SILENT]
        released = [event.index for event in changes if event.kind is EventKind.RELEASED]
        settled = [event.index for event in changes if event.kind is EventKind.SETTLED]
        reasons: list[Why] = []
        if events:  # most batches have none, and detectors are asked for rows with an event only
            rows = np.array([event.index for event in events], dtype=np.int64)
            reasons = list(map(Why, *self._why(rows, scores), self._nearest(rows, scores).tolist()))
        return Decision(
            scores,
            seen,
            decided,
            limits,
            list(zip(events, reasons, strict=True)),
            self.info,
            unhealthy,
            released,
            settled,
            raw,
            learn,
        )

    def _warn(self, limits: Floats) -> None:
        """Say once where thresholds lie beyond what calibration can count: there the tail decides."""
        deciding = self.lanes[0].calibrator if self._combination is None else self._calibrator
        if deciding is None or not len(limits) or (asked := float(limits.max())) <= deciding.reach:
            return
        self._warned = True
        log.get().warning(
            "threshold_beyond_history",
            detector=self.name,
            asked=f"1 in {10.0**asked:,.0f}",
            counted=f"1 in {10.0**deciding.reach:,.0f}",
            hint="alerts so rare follow from a fitted tail, as with evt; a longer calibration.history counts them",
        )

    def _together(
        self, scores: Mapping[str, Floats], slots: Slots, learn: Mask, unknown: Mask
    ) -> tuple[Floats, Mask]:
        """One score (n,) of all detectors that gave one, NaN where none did; and where it is no probability yet.

        The second calibration learns from whole votes only. One that lacks a voice is no rarer than by that history,
        nor than it were if the remaining detectors had nothing to do with each other."""
        if self._combination is None:
            return scores[self.lanes[0].name], unknown
        votes = np.array([scores[lane.name] for lane in self.lanes])
        decided = combined(votes, self._combination, self._weights())
        at = np.flatnonzero(np.isfinite(decided))
        if self._calibrator is None or not len(at):
            return decided, unknown
        votes, whole = votes[:, at], np.isfinite(votes[:, at]).all(axis=0)
        surprise = self._calibrator.score_learn(
            slots[at], decided[at], learn[at] & whole, warm=~unknown[at], unknown=np.nan
        )
        unknown = unknown.copy()
        unknown[at] |= np.isnan(surprise) & whole
        if not whole.all():
            part = ~whole
            alone = improbability(decided[at[part]], votes[:, part], self._combination, self._weights())
            surprise[part] = np.fmin(surprise[part], alone)
        decided[at] = np.nan_to_num(surprise)
        return decided, unknown

    def _weights(self) -> Floats:
        stated = {} if self._combination is None else self._combination.weights
        return np.array([stated.get(lane.name, 1.0) for lane in self.lanes])

    def _qualified(
        self, scores: Floats, limits: Floats, by_lane: Mapping[str, Floats], part: Part
    ) -> tuple[Floats, Floats]:
        """The scores as the rule counts them, and as it does while an alert is open: 0 where the deviation is too
        small, or in the other direction."""
        rule = self._rule
        if rule.direction == "both" and not rule.min_deviation and not self._floors.any():
            return scores, scores
        rows = np.flatnonzero(scores >= limits)
        if not len(rows):
            return scores, scores
        shares, expected = self._why(rows, by_lane)
        top = np.argmax(np.abs(shares), axis=1)
        each = np.arange(len(rows))
        share, normal = shares[each, top], expected[each, top]
        off = np.abs(part.columns[rows, top] - normal)
        most, usual = self._within_stretches(rows, top, by_lane)
        compared = np.isfinite(most)
        off, normal = np.where(compared, np.abs(most), off), np.where(compared, usual, normal)
        least = np.maximum(self._floors[top], rule.min_deviation * np.abs(normal))  # NaN is never small
        wrong = np.zeros(len(rows), np.bool_)
        if rule.direction != "both":
            wrong = share < 0 if rule.direction == "up" else share > 0
        counted, lasting = scores.copy(), scores.copy()
        counted[rows[(off < least) | wrong]] = 0.0
        lasting[rows[(off < _STAYS * least) | wrong]] = 0.0
        return counted, lasting

    def _within_stretches(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], scores: Mapping[str, Floats]
    ) -> tuple[Floats, Floats]:
        """The largest difference (k,) within the stretch that ended with each row, in one column each, and what was
        expected there; NaN where the lane that weighs most of those that see it compares no stretches."""
        most, usual = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        weighs = np.full(len(rows), -1.0)
        for weight, lane in zip(self._weights().tolist(), self.lanes, strict=True):
            own = np.nan_to_num(weight * scores[lane.name][rows])
            better = lane.looks_at(len(self._floors))[columns] & (own > weighs)
            weighs[better] = own[better]
            most[better], usual[better] = np.nan, np.nan
            if isinstance(lane.model, StretchModel) and better.any():
                told = lane.model.stretches(rows[better])
                each, place = np.arange(int(better.sum())), columns[better]
                if lane.inputs is not None:
                    place = np.array([np.flatnonzero(lane.inputs == column)[0] for column in place], np.int64)
                most[better], usual[better] = told.largest[each, place], told.usual[each, place]
        return most, usual

    def _why(self, rows: NDArray[np.int64], scores: Mapping[str, Floats]) -> Contributions:
        """Reasons for rows (k,) of the latest attempt: the detectors' own, by what each had to say."""
        found = [lane.reasons(rows, len(self._floors)) for lane in self.lanes]
        if len(found) == 1:
            return found[0]
        weights = self._weights()[:, None] * np.array([scores[lane.name][rows] for lane in self.lanes])
        weights = np.nan_to_num(weights)
        shares = np.einsum("lk,lkj->kj", weights, np.array([why.shares for why in found]))
        total = np.abs(shares).sum(axis=1, keepdims=True)
        seen = np.array([lane.looks_at(len(self._floors)) for lane in self.lanes])
        strongest = np.where(seen[:, None, :], weights[:, :, None], -1.0).argmax(
            axis=0
        )  # of those that see it
        expected = np.take_along_axis(np.array([why.expected for why in found]), strongest[None], axis=0)[0]
        return Contributions(shares / np.where(total > 0, total, 1.0), expected)

    def _nearest(self, rows: NDArray[np.int64], scores: Mapping[str, Floats]) -> Floats:
        """Distance (k,) to the nearest normal example by the lane that weighs most of those that have one."""
        nearest, most = np.full(len(rows), np.nan), np.full(len(rows), -1.0)
        for weight, lane in zip(self._weights().tolist(), self.lanes, strict=True):
            if not isinstance(lane.model, ExampleModel):
                continue
            found = lane.model.nearest_distances(rows)
            weighs = weight * scores[lane.name][rows]
            better = np.isfinite(found) & (weighs > most)
            nearest[better], most[better] = found[better], weighs[better]
        return nearest

    def _snapshot(self, slots: Slots) -> dict[str, Rows]:
        keys = np.unique(slots)
        return {name: table.snapshot(keys) for name, table in self.tables()}

    def _restore(self, slots: Slots, before: Mapping[str, Rows]) -> None:
        keys = np.unique(slots)
        for name, table in self.tables():
            table.restore(keys, before[name])


def _scored(lane: Lane, part: Part, learn: Mask) -> Floats:
    slots = part.slots
    started = perf_counter()
    try:
        scores = lane.model.score_learn(slots, lane.shown(part.columns), part.batch.times, learn)
    except ModelUnavailable:
        raise
    except Exception as error:  # a detector may be anybody's: whatever it raises is its failure
        raise DetectorFailed(lane.name, f"{type(error).__name__}: {error}") from error
    finally:
        lane.seconds += perf_counter() - started
    if scores.shape != slots.shape:
        raise DetectorFailed(lane.name, f"gave {scores.shape} scores for {slots.shape} readings")
    return scores


def _turns(slots: Slots) -> Iterator[NDArray[np.int64]]:
    """The rows of each key's first reading, then of each key's second, and so on."""
    order = np.argsort(slots, kind="stable")
    _, starts, sizes = np.unique(slots[order], return_index=True, return_counts=True)
    rank = np.empty(len(slots), np.int64)
    rank[order] = np.arange(len(slots)) - np.repeat(starts, sizes)
    return (np.flatnonzero(rank == turn) for turn in range(int(sizes.max())))


def _after_a_change(slots: Slots, decision: Decision) -> Mask:
    """Which readings come after one that opened or closed an alert of their key, or ended what it was closed with."""
    first: dict[int, int] = {}
    changes = [event.index for event, _ in decision.events if event.kind is not EventKind.UPDATED]
    for index in sorted([*changes, *decision.released, *decision.settled]):
        first.setdefault(int(slots[index]), index)
    beyond = np.zeros(len(slots), np.bool_)
    for slot, index in first.items():
        beyond |= (slots == slot) & (np.arange(len(slots)) > index)
    return beyond
