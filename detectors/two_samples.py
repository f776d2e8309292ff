"""KSWIN: whether a sensor's newest readings are distributed as those before, by Kolmogorov and Smirnov."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.draws import uniform
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.ordered import in_order, renew
from detectors.table import Column, Table

__all__ = ["KSWIN", "KSWINModel"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it."""


class KSWIN(Detector, frozen=True, kw_only=True):
    """Scores how unlikely it is that a sensor's newest readings are distributed as older ones: -log10 of p.

    Raab, Heusinger and Schleif, "Reactive soft prototype computing for concept drift streams", Neurocomputing
    2020: the newest `recent` readings of each key's sensor against as many drawn from the rest of the last
    `window`, by the two-sample Kolmogorov-Smirnov test. p is exact for two samples of one size (Gnedenko and
    Korolyuk 1951), and too large, never too small, where values repeat. The sample is drawn anew with each
    reading, as a function of `seed` and the number of readings alone. The sensor with the least p counts. With
    a learned reading that reaches the threshold all is dropped, and the test waits for twice `recent` readings.
    (The paper keeps the newest; where they are of both sorts, it tells a large drift twice.)

    It judges distributions, by level, spread and shape, and no single reading: no spike is seen. At the
    defaults a level that shifts by one sigma is told after about 60 readings, by two after 36, a spread that
    grows fourfold after 80, a flat line after 45. A test of independent readings is wrong with a probability of
    10**-threshold at most; measured: one false drift in 25,000 readings, since successive tests share theirs. A
    drift is told once, and what is newer is normal: an alert is a moment (`close_after: 0`), and the kind
    serves to say when a model is to be trained again, also on a stream of scores (sensors `("score",)`).
    Readings held back from learning (the `learn` mask) are tested, and do not enter the older part.

    Fails on readings that depend on each other (watch scores or residuals), on seasons, on shifts below one
    sigma (use `page_hinkley`), on slow drift, which moves both parts, and for twice `recent` readings after
    each drift.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(600, 1)) * np.where(np.arange(600) < 500, 1.0, 5.0)[:, np.newaxis]
    >>> model = KSWIN().build(("score",))
    >>> scores = model.score_learn(np.zeros(600, np.int64), values, np.arange(600.0))
    >>> int(np.argmax(scores >= model.threshold))
    572
    """

    kind: ClassVar[str] = "kswin"
    relative: ClassVar[float] = 3.0

    window: Annotated[int, Meta(ge=20, le=2**20)] = 400
    """Readings of a key's sensor that are kept; each takes 8 bytes."""
    recent: Annotated[int, Meta(ge=10, le=500)] = 100
    """Newest readings, those tested; a difference of the distributions of 0.3 is told at 100, of 0.44 at 50."""
    seed: int = 42

    def __post_init__(self) -> None:
        if self.window < 2 * self.recent:
            raise ValueError(
                f"window: {self.window} readings are too few: at least twice recent, {2 * self.recent}"
            )

    def build(self, sensors: tuple[str, ...]) -> KSWINModel:
        """A fresh model; its threshold is 4, a p of 1 in 10,000, where the recipe states none."""
        return KSWINModel(self, sensors)


class KSWINModel:
    """State per key and sensor: newest and older readings, 3,316 bytes at the defaults; sorted, in memory only."""

    def __init__(self, recipe: KSWIN, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 4.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = 2 * recipe.recent - 1
        self._recipe = recipe
        self._surprise = _surprise(recipe.recent)
        width = (len(sensors),)
        self._table = Table(
            {
                "count": Column(np.int64, width),
                "recent": Column(np.float64, (*width, recipe.recent)),
                "learned": Column(np.bool_, (*width, recipe.recent)),
                "joined": Column(np.int64, width),
                "older": Column(np.float64, (*width, recipe.window - recipe.recent)),
            }
        )
        self._ordered = Table(
            {
                "recent": Column(np.float64, (*width, recipe.recent)),
                "older": Column(np.float64, (*width, recipe.window - recipe.recent)),
            }
        )
        self._signed: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), -log10 of p; see `Model`. About 2 µs per reading and sensor."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table, ordered = self._recipe, self._table, self._ordered
        table.reserve(slots)
        ordered.reserve(slots)
        scores = np.zeros(len(slots))
        self._signed, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["recent"],
            ordered["recent"],
            table["learned"],
            table["joined"],
            table["older"],
            ordered["older"],
            self._surprise,
            self.threshold,
            recipe.seed,
            scores,
            self._signed,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by -log10 of p, positive where the newest readings lie higher; expected is the sample's
        median."""
        signed = self._signed[rows]
        total = np.abs(signed).sum(axis=1, keepdims=True)
        return Contributions(signed / np.where(total > 0, total, 1.0), self._expected[rows])

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: all it has are the latest readings, which are gathered anew."""
        at = np.ix_(slots, np.flatnonzero(sensors))
        self._table.reserve(slots)
        self._table["count"][at] = self._table["joined"][at] = 0
        self._table["learned"][at] = False

    def snapshot(self, slots: Slots) -> Rows:
        """`recent` and whether `learned` (k, n_sensors, recent), `older` (…, window - recent), both rings; what
        came and what `joined` the older part since a drift, (k, n_sensors).
        """
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on negative counts."""
        for name in ("count", "joined"):
            if (np.asarray(rows.get(name, 0)) < 0).any():
                raise ValueError(f"state {name!r}: a count of readings is negative")
        table, ordered = self._table, self._ordered
        table.restore(slots, rows)
        ordered.reserve(slots)
        ordered["recent"][slots] = in_order(table["recent"][slots], table["count"][slots])
        ordered["older"][slots] = in_order(table["older"][slots], table["joined"][slots])


def _surprise(n: int) -> Floats:
    """-log10 of the probability that two samples of n have distributions that differ by h / n, for h of 0 to n.

    P = 2 (C(2n, n-h) - C(2n, n-2h) + C(2n, n-3h) …) / C(2n, n).
    """
    chances = [1.0]
    for h in range(1, n + 1):
        ways = sum((-1) ** (k + 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1))
        chances.append(2 * ways / math.comb(2 * n, n))
    surprise: Floats = np.maximum(-np.log10(np.minimum(np.asarray(chances), 1.0)), 0.0)
    return surprise


@compiled("void(float64[::1], int64, int64, int64, boolean[::1], float64[::1])")
def _draw(older: Floats, kept: int, seed: int, counter: int, drawn: Mask, sample: Floats) -> None:
    """Fill the sample from the first `kept` without replacement, in their order; `drawn` is scratch."""
    drawn[:kept] = False
    leave = kept - len(sample) < len(sample)  # then fewer draws say which to leave out
    wanted = kept - len(sample) if leave else len(sample)
    tries = 0
    while wanted > 0:
        place = int(uniform(seed, counter, tries) * kept)
        tries += 1
        if not drawn[place]:
            drawn[place] = True
            wanted -= 1
    filled = 0
    for place in range(kept):
        if drawn[place] != leave:
            sample[filled] = older[place]
            filled += 1


@compiled("int64(float64[::1], float64[::1])")
def _apart(recent: Floats, sample: Floats) -> int:
    """Largest difference of the two sorted samples' distribution functions, times their size; > 0: recent is
    higher."""
    largest, a, b, n = 0, 0, 0, len(recent)
    while a < n and b < n:
        value = min(recent[a], sample[b])
        while a < n and recent[a] == value:
            a += 1
        while b < n and sample[b] == value:
            b += 1
        if abs(b - a) > abs(largest):
            largest = b - a
    return largest


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,:,::1], float64[:,:,::1],"
    " boolean[:,:,::1], int64[:,::1], float64[:,:,::1], float64[:,:,::1], float64[::1], float64, int64, float64[::1],"
    " float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    recent: Floats,
    recent_ordered: Floats,
    known: Mask,
    joined: NDArray[np.int64],
    older: Floats,
    older_ordered: Floats,
    surprise: Floats,
    threshold: float,
    seed: int,
    scores: Floats,
    signed: Floats,
    expected: Floats,
) -> None:
    size, room = recent.shape[2], older.shape[2]
    sample, drawn = np.empty(size), np.empty(room, np.bool_)
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            if not np.isfinite(values[i, j]):
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE) + 0.0  # there is but one zero
            seen = count[slot, j]
            place = seen % size
            if seen >= size and known[slot, j, place]:
                renew(older[slot, j], older_ordered[slot, j], joined[slot, j], recent[slot, j, place])
                joined[slot, j] += 1
            renew(recent[slot, j], recent_ordered[slot, j], seen, value)
            known[slot, j, place] = learn[i]
            count[slot, j] = seen + 1
            kept = min(joined[slot, j], room)
            if kept < size:
                continue
            _draw(older_ordered[slot, j], kept, seed, seen, drawn, sample)
            difference = _apart(recent_ordered[slot, j], sample)
            score = surprise[abs(difference)]
            signed[i, j] = score if difference > 0 else -score
            expected[i, j] = 0.5 * (sample[(size - 1) // 2] + sample[size // 2])
            scores[i] = max(scores[i], score)
            if learn[i] and score >= threshold:
                joined[slot, j] = 0
                known[slot, j, :] = False
