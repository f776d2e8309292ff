"""What a sensor reads at this time of the day or of the week: a profile by phase, learned over the seasons."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Detector, Floats, Mask, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.residuals import ResidualModel, bounded, next_variance, sigmas
from detectors.table import Column

__all__ = ["SeasonalProfile", "SeasonalProfileModel"]

_YOUNG = 2.0
"""Visits below which a bin borrows its mean from its neighbours, less with each."""
_OVERALL = 0.5
"""Visits that the overall mean counts among the neighbours."""
_SHARED = 3.0
"""Visits that the spread of all bins together counts in that of a bin."""
_LEAST_SHARE = 0.04
"""A bin's variance is at least this part of the common one."""


class SeasonalProfile(Detector, frozen=True, kw_only=True):
    """Scores a reading by how far it is from what is usual at its phase of a season, in sigmas.

    The season, `period` seconds by the readings' own times (UTC), is cut into `bins`; each has an exponentially
    weighted mean and variance (West 1979; a spread by phase as in Brutlag, "Aberrant behavior detection in time
    series for network monitoring", LISA 2000) whose weights fade by time: irregular readings and gaps do no
    harm. A *visit* is a season in which a bin was read. Until it has had two that count, a bin borrows its mean
    from its neighbours and the overall mean. Its sigma is the geometric mean of its own and that of the errors
    in all bins from the second season on, weighted by its visits and 3; and widened for the visits being few.
    Days that differ as a whole are so allowed for. Once a key is warm, deviations beyond `clip` sigmas are
    learned as if they were `clip` sigmas.

    With a week as the `period` take 168 bins or more. Nothing is learned from what the `learn` mask holds back.

    Fails where the level moves from day to day (then most is spread: use `holt_winters` or `autoregressive`),
    where the season is not a fixed number of seconds (production cycles, clock changes: local time moves by an
    hour twice a year), and where it is steep within a bin.

    >>> times = 1.7e9 + 900.0 * np.arange(96 * 10)
    >>> values = np.sin(2 * np.pi * times / 86_400)[:, np.newaxis]
    >>> values[-48] = -values[-48]
    >>> model = SeasonalProfile().build(("load",))
    >>> int(np.argmax(model.score_learn(np.zeros(960, np.int64), values, times)))
    912
    """

    kind: ClassVar[str] = "seasonal_profile"

    period: Annotated[float, Meta(gt=0, extra={"unit": "seconds"})] = 86_400.0
    """Length of the season: `1d`, `7d`, or seconds."""
    bins: Annotated[int, Meta(ge=2, le=10_000)] = 48
    """Phases of the season. One that was never read is not scored."""
    half_life: Annotated[float, Meta(ge=2)] = 7.0
    """Seasons after which a reading counts half."""
    warmup: Annotated[float, Meta(ge=1)] = 2.0
    """Seasons from a key's first learned reading on before it is scored."""
    clip: Annotated[float, Meta(gt=1)] = 3.0
    """Sigmas beyond which a deviation is learned no further."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> SeasonalProfileModel:
        """A fresh model; its threshold is 6 sigmas where the recipe states none."""
        return SeasonalProfileModel(self, sensors)


class SeasonalProfileModel(ResidualModel):
    """State per key: 24 bytes, and 32 a sensor and for each of its bins; 1.6 kB with one sensor at the defaults."""

    def __init__(self, recipe: SeasonalProfile, sensors: tuple[str, ...]) -> None:
        self._recipe = recipe
        cells = (len(sensors), recipe.bins)
        columns = {
            "count": Column(np.int64),
            "start": Column(np.float64),
            "newest": Column(np.float64),
            "updated": Column(np.float64, cells),
            "weight": Column(np.float32, cells),
            "visits": Column(np.float32, cells),
            "mean": Column(np.float64, cells),
            "variance": Column(np.float64, cells),
            "overall": Column(np.float64, (len(sensors), 4)),
        }
        super().__init__(sensors, 6.0 if recipe.threshold is None else recipe.threshold, columns)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in sigmas, at most a million; see `Model`. Some 0.2 µs per reading and sensor."""
        slots, values, times = slot_numbers(slots), floats(values), floats(times)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            times,
            learned(learn, len(slots)),
            table["count"],
            table["start"],
            table["newest"],
            table["updated"],
            table["weight"],
            table["visits"],
            table["mean"],
            table["variance"],
            table["overall"],
            recipe.period,
            recipe.half_life * recipe.period,
            recipe.warmup * recipe.period,
            recipe.clip,
            recipe.floor,
            recipe.floor_relative,
            scores,
            self._deviations,
            self._expected,
        )
        return scores


@compiled("float64(int64, float64[::1], float32[::1], float64)")
def _borrowed(cell: int, mean: Floats, visits: NDArray[np.float32], overall: float) -> float:
    """The mean to expect where a bin has none of its own: that of its neighbours, and a little of all."""
    total, weight = _OVERALL * overall, _OVERALL
    for side in (-1, 1):
        other = (cell + side) % len(mean)
        counted = min(visits[other], _YOUNG)
        total += counted * mean[other]
        weight += counted
    return total / weight


@compiled("float64(float64, float64, float64)")
def _spread(own: float, common: float, visits: float) -> float:
    """The variance of a forecast error in a bin, of its own and the common one."""
    own = max(own, _LEAST_SHARE * common)
    if own > 0.0 and common > 0.0:
        own = np.exp((visits * np.log(own) + _SHARED * np.log(common)) / (visits + _SHARED))
    return own * (1.0 + 1.0 / max(visits, 1.0))


@compiled("void(int64, float64, float64, float64, float64[::1], float64[::1])")
def _learn(cell: int, value: float, share: float, least: float, mean: Floats, variance: Floats) -> None:
    """Learn a value with this share in a bin's mean and variance; all of it where the bin is fresh."""
    if share >= 1.0:
        mean[cell], variance[cell] = value, 0.0
        return
    step = value - mean[cell]
    count = int(1.0 / share) - 1
    variance[cell] = next_variance(variance[cell], np.sqrt(1.0 - share) * step, share, least, count)
    mean[cell] += share * step


@compiled(
    "void(int64[::1], float64[:,::1], float64[::1], boolean[::1], int64[::1], float64[::1], float64[::1],"
    " float64[:,:,::1], float32[:,:,::1], float32[:,:,::1], float64[:,:,::1], float64[:,:,::1], float64[:,:,::1],"
    " float64, float64, float64, float64, float64, float64, float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    times: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    start: Floats,
    newest: Floats,
    updated: Floats,
    weight: NDArray[np.float32],
    visits: NDArray[np.float32],
    mean: Floats,
    variance: Floats,
    overall: Floats,
    period: float,
    half_life: float,
    warmup: float,
    clip: float,
    floor: float,
    floor_relative: float,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
) -> None:
    n_bins = mean.shape[2]
    for i in range(values.shape[0]):
        slot = slots[i]
        now = times[i] if np.isfinite(times[i]) else newest[slot]
        season = np.floor(now / period)
        phase = now / period - season
        cell = min(int(n_bins * phase), n_bins - 1) if 0.0 <= phase < 1.0 else 0
        known_for = now - start[slot] if count[slot] else -1.0
        faded = 0.5 ** (max(now - newest[slot], 0.0) / half_life)
        for j in range(values.shape[1]):
            common = overall[slot, j]  # weight and mean of all bins, weight and variance of the errors
            if learn[i]:
                common[0] *= faded
                common[2] *= faded
            left = 0.5 ** (max(now - updated[slot, j, cell], 0.0) / half_life)
            had, own = weight[slot, j, cell] * left, mean[slot, j, cell]
            stays = visits[slot, j, cell] * left
            center = own
            if stays < _YOUNG:
                center = _borrowed(cell, mean[slot, j], visits[slot, j], common[1])
                center = (stays * own + (_YOUNG - stays) * center) / _YOUNG
            young = common[0] == 0.0
            expected[i, j] = np.nan if young else center
            if not np.isfinite(values[i, j]):
                continue
            value = bounded(values[i, j])
            residual = 0.0 if young else value - center
            least = max(floor, floor_relative * abs(center))
            spread = _spread(variance[slot, j, cell], common[3], stays)
            if known_for >= warmup and had > 0.0:
                z = sigmas(residual, spread, 1.0 / (had + 1.0), least)
                deviations[i, j] = z
                scores[i] = max(scores[i], abs(z))
            if not learn[i]:
                continue
            if known_for >= warmup and np.sqrt(spread) > least:
                most = clip * np.sqrt(spread)
                residual = min(max(residual, -most), most)
            cleaned = value if young else center + residual
            share = 1.0 / (had + 1.0)
            _learn(cell, cleaned, share, least, mean[slot, j], variance[slot, j])
            again = had > 0.0 and np.floor(updated[slot, j, cell] / period) == season
            visits[slot, j, cell] = stays if again else stays + 1.0
            weight[slot, j, cell] = had + 1.0
            updated[slot, j, cell] = max(updated[slot, j, cell], now)
            if known_for >= period and not young:
                common[3] = next_variance(common[3], residual, 1.0 / (common[2] + 1.0), least, int(common[2]))
                common[2] += 1.0
            common[0] += 1.0
            common[1] += (cleaned - common[1]) / common[0]
        if learn[i]:
            start[slot] = start[slot] if count[slot] else now
            newest[slot] = max(newest[slot], now) if count[slot] else now
            count[slot] += 1
