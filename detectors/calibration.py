"""Calibration: what a score means, as the probability that a normal reading of this key scores as high."""

from __future__ import annotations

import math
import zlib
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["Calibration", "Calibrator"]

_REFITS = 100
"""The tail is fitted anew this often while the history is replaced once."""
_LEAST_EXCESSES = 5
_FINE = 2e-3
"""Least scale of a tail where limits are asked for, as a share of where it begins: a score that comes again is no
news."""
_MOST = 1.25
"""Times the limit that a score counts at most where limits are asked for."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Turns scores of any detector into surprise: -log10 of the probability of a normal score as high.

    The last `history` scores of a key tell what is normal: below their `quantile` by counting, above it with
    `evt` by a generalised Pareto distribution fitted to the excesses (peaks over threshold as in SPOT, Siffer et
    al., KDD 2017; fitted by probability-weighted moments, Hosking and Wallis 1987). `conformal` counts as far
    as the history reaches, up to log10(`history` + 1), which holds without any assumption but exchangeability
    (Laxhammar and Falkman 2010); how much rarer a score is that is above all of them, the tail says.

    Scores of 0 before a key's first other score, its detector's warm-up, do not count.

    >>> calibrator = Calibration(warmup=50).build()
    >>> scores = np.append(np.random.default_rng(0).exponential(1.0, 500), 12.0)
    >>> float(calibrator.score_learn(np.zeros(501, np.int64), scores)[-1].round(1))
    3.6
    """

    method: Literal["evt", "conformal"] = "evt"
    history: Annotated[int, Meta(ge=50, le=1_000_000)] = 1000
    """Scores remembered for each key."""
    warmup: Annotated[int, Meta(ge=50)] = 100
    """Scores of a key before any is a surprise."""
    quantile: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    """Where the tail begins."""
    largest_shape: Annotated[float, Meta(ge=0, le=0.9)] = 0.5
    """Bound of the Pareto shape: what lets heavy tails be heavy, and alarm less; 0 fits an exponential tail, which
    promises too much on heavy ones (8 times as many as said beyond 1 in 10,000, Student's t(3); 0.5 leaves 3)."""
    repeats: Literal["tail", "count"] = "tail"
    """What a score is worth that the history holds already, to the last digit: with `tail` what any other is; with
    `count` it is no rarer than it and higher ones came. Scores of discrete sensors (counts, stages) repeat; a tail
    takes their every record for far rarer than records are; but nothing that repeats is then rarer than one in the
    history."""

    def __post_init__(self) -> None:
        if self.warmup > self.history:
            raise ValueError(f"warmup: {self.warmup} scores do not fit into a history of {self.history}")

    @property
    def reach(self) -> float:
        """-log10 of the least probability that follows from no assumption about tails; infinite of `evt`, which
        assumes one anyway."""
        return math.inf if self.method == "evt" else math.log10(self.history + 1)

    def build(self, source: str = "", *, after: int | None = None) -> Calibrator:
        """A calibrator that has seen nothing. `source` identifies what gives the scores, where that may change:
        the history of another source is then not put back. `after`: so many scores of a key are its detector's
        warm-up, and scores of 0 among later ones are news; None: see `warm` of `score_learn`."""
        return Calibrator(self, source, after)


class Calibrator:
    """State per key: the last scores in a ring, 4 bytes each, and the fitted tail; 4 kB at the defaults."""

    def __init__(self, recipe: Calibration, source: str = "", after: int | None = None) -> None:
        self._recipe = recipe
        self.reach = recipe.reach
        self._source = zlib.crc32(source.encode())
        self._after = -1 if after is None else after
        columns = {
            "count": Column(np.int64),
            "ring": Column(np.float32, (recipe.history,)),
            "fitted": Column(np.int64),
            "tail": Column(np.float64, (4,)),
        }
        if after is not None:
            columns["offered"] = Column(np.int64)
        if source:
            columns["source"] = Column(np.int64, (), self._source)
        self._table = Table(columns)

    def score_learn(
        self,
        slots: Slots,
        scores: Floats,
        learn: Mask | None = None,
        *,
        warm: Mask | None = None,
        unknown: float = 0.0,
    ) -> Floats:
        """Surprise (n,) of scores (n,) in arrival order, each judged by its key's history, then added to it.

        At least 0, at most 30; `unknown` while warming up. Scores of 0 before a key's first other one are taken for
        those of a detector's warm-up and left out, but where `warm` (n,) is set, or after those that `build` was
        told of: a sensor that never moved scores 0 for ever, and is to be told when it does. Splitting a call
        anywhere changes nothing; `learn` as in `Model`. About 1 µs per score, and 5 µs with a history of 20,000.
        """
        slots, scores = slot_numbers(slots), floats(scores)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        surprise = np.full(len(slots), unknown)
        _score_learn(
            slots,
            scores,
            learned(learn, len(slots)),
            np.zeros(len(slots), np.bool_) if warm is None else warm,
            table["count"],
            table["ring"],
            table["fitted"],
            table["tail"],
            self._offered(),
            self._after,
            recipe.warmup,
            recipe.quantile,
            recipe.largest_shape,
            recipe.method == "evt",
            recipe.repeats == "count",
            surprise,
        )
        return surprise

    def limits(
        self, slots: Slots, scores: Floats, surprise: float, least: float, learn: Mask | None = None
    ) -> Floats:
        """The score (n,) that is a surprise so great, by each key's history before each of these scores, and at least
        `least`; then they are added to it, also those of 0 (but none of the warm-up that `build` was told of), and
        each as no more than a quarter more than that limit: a fault says little of how high normal ones reach.

        Infinite until a key has `warmup` scores and its tail has been fitted."""
        slots, scores = slot_numbers(slots), floats(scores)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        found = np.full(len(slots), np.inf)
        _limits(
            slots,
            scores,
            learned(learn, len(slots)),
            table["count"],
            table["ring"],
            table["fitted"],
            table["tail"],
            self._offered(),
            self._after,
            recipe.warmup,
            recipe.quantile,
            recipe.largest_shape,
            surprise,
            least,
            found,
        )
        return found

    def _offered(self) -> NDArray[np.int64]:
        """Scores that were to be learned so far, where a warm-up is counted."""
        found: NDArray[np.int64] = self._table["offered"] if self._after >= 0 else np.zeros(0, np.int64)
        return found

    def snapshot(self, slots: Slots) -> Rows:
        """`count` and `fitted` (k,), `ring` (k, history), `tail` (k, 4), and `source` and `offered` (k,) where they
        are asked for."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back; a key whose scores another source gave starts anew. Raises ValueError on a mismatch."""
        if "count" in rows and np.size(rows["count"]) and np.min(rows["count"]) < 0:
            raise ValueError("state 'count' is negative")
        self._table.restore(slots, rows)
        if "source" in rows:
            self._table.clear(slots[rows["source"] != self._source])


_LARGEST = 30.0
_THRESHOLD, _SCALE, _SHAPE, _FITTED = range(4)


@compiled("void(float32[::1], float64[::1], float64, float64)")
def _fit(scores: NDArray[np.float32], tail: Floats, quantile: float, largest_shape: float) -> None:
    """Threshold, scale and shape of the tail of these scores, put into `tail`."""
    ordered = np.sort(scores)
    at = int(quantile * len(ordered))
    threshold = float(ordered[at])
    k = len(ordered) - at - 1
    first, second = 0.0, 0.0
    for u in range(k):
        excess = float(ordered[at + 1 + u]) - threshold
        first += excess / k
        if k > 1:
            second += excess * (k - 1 - u) / (k - 1) / k
    shape = 0.0
    if largest_shape > 0.0 and first > 2.0 * second:
        shape = min(max(2.0 - first / (first - 2.0 * second), 0.0), largest_shape)
    tail[_THRESHOLD] = threshold
    tail[_SCALE] = max(first * (1.0 - shape), 1e-9 * max(abs(threshold), 1e-9))
    tail[_SHAPE] = shape
    tail[_FITTED] = 1.0 if k >= _LEAST_EXCESSES else 0.0


@compiled(
    "void(int64, float32, int64[::1], float32[:,::1], int64[::1], float64[:,::1], int64, float64, float64)"
)
def _remember(
    slot: int,
    score: np.float32,
    count: NDArray[np.int64],
    ring: NDArray[np.float32],
    fitted: NDArray[np.int64],
    tail: Floats,
    warmup: int,
    quantile: float,
    largest_shape: float,
) -> None:
    """Add a score to its key's history; fit the tail anew where it is time."""
    history = ring.shape[1]
    ring[slot, count[slot] % history] = score
    seen = count[slot] + 1
    count[slot] = seen
    fitted[slot] += 1
    if seen == warmup or (seen > warmup and fitted[slot] >= max(20, min(seen - 1, history) // _REFITS)):
        _fit(ring[slot, : min(seen, history)], tail[slot], quantile, largest_shape)
        fitted[slot] = 0


@compiled(
    "void(int64[::1], float64[::1], boolean[::1], boolean[::1], int64[::1], float32[:,::1], int64[::1],"
    " float64[:,::1], int64[::1], int64, int64, float64, float64, boolean, boolean, float64[::1])"
)
def _score_learn(
    slots: Slots,
    scores: Floats,
    learn: Mask,
    warm: Mask,
    count: NDArray[np.int64],
    ring: NDArray[np.float32],
    fitted: NDArray[np.int64],
    tail: Floats,
    offered: NDArray[np.int64],
    after: int,
    warmup: int,
    quantile: float,
    largest_shape: float,
    evt: bool,
    counts: bool,
    surprise: Floats,
) -> None:
    history = ring.shape[1]
    for i in range(len(slots)):
        slot = slots[i]
        score = np.float32(scores[i])
        seen = count[slot]
        held = min(seen, history)
        if seen >= warmup:
            row = tail[slot]
            fitted_tail = row[_FITTED] > 0.0
            above, came, by_tail = 0, False, 0.0
            if fitted_tail and score > row[_THRESHOLD]:
                excess = (score - row[_THRESHOLD]) / row[_SCALE]
                decay = np.log1p(row[_SHAPE] * excess) / row[_SHAPE] if row[_SHAPE] > 0.0 else excess
                by_tail = min((decay - np.log(1.0 - quantile)) / np.log(10.0), _LARGEST)
            told = evt and by_tail > 0.0
            if counts or not told:
                for h in range(held):
                    above += ring[slot, h] >= score
                    came = came or ring[slot, h] == score
            if told:
                surprise[i] = min(by_tail, -np.log10(above / held)) if came else by_tail
            else:
                share = (above + 1.0) / (held + 1.0)
                if evt and fitted_tail:
                    share = max(share, 1.0 - quantile)
                surprise[i] = -np.log10(share)
                if above == 0:
                    surprise[i] = max(surprise[i], by_tail)
        if not learn[i]:
            continue
        if after >= 0:
            offered[slot] += 1
        if seen > 0 or score != 0.0 or warm[i] or 0 <= after < offered[slot]:
            _remember(slot, score, count, ring, fitted, tail, warmup, quantile, largest_shape)


@compiled(
    "void(int64[::1], float64[::1], boolean[::1], int64[::1], float32[:,::1], int64[::1], float64[:,::1], int64[::1],"
    " int64, int64, float64, float64, float64, float64, float64[::1])"
)
def _limits(
    slots: Slots,
    scores: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    ring: NDArray[np.float32],
    fitted: NDArray[np.int64],
    tail: Floats,
    offered: NDArray[np.int64],
    after: int,
    warmup: int,
    quantile: float,
    largest_shape: float,
    surprise: float,
    least: float,
    found: Floats,
) -> None:
    beyond = max(surprise * np.log(10.0) + np.log(1.0 - quantile), 0.0)
    for i in range(len(slots)):
        slot = slots[i]
        row = tail[slot]
        if count[slot] >= warmup and row[_FITTED] > 0.0:
            shape = row[_SHAPE]
            excess = np.expm1(shape * beyond) / shape if shape > 0.0 else beyond
            scale = max(row[_SCALE], _FINE * abs(row[_THRESHOLD]))
            found[i] = max(row[_THRESHOLD] + scale * excess, least)
        if learn[i] and after >= 0:
            offered[slot] += 1
        if learn[i] and (after < 0 or offered[slot] > after):
            score = np.float32(min(scores[i], _MOST * found[i]))
            _remember(slot, score, count, ring, fitted, tail, warmup, quantile, largest_shape)
