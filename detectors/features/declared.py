"""Features as data, each kind told by one setting: what a feature is, and those of one sensor.

A feature is missing (NaN) in a reading in which a sensor of it is missing, until it has as many values as it needs,
and where its value would be no finite number. Windows and lags count a sensor's own values: a reading without that
sensor does not count. They include the reading itself and nothing after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, structs
from msgspec.structs import force_setattr

__all__ = ["Band", "Change", "Crossings", "Feature", "Lag", "Rate", "Rolling", "Settings", "Window"]

Settings = Mapping[str, Any]
"""Settings by name, those that could be read: what `check` looks at."""
Window = Annotated[int, Meta(ge=2, le=10_000)]
"""How many values of the sensor, the newest included."""
Steps = Annotated[int, Meta(ge=1, le=10_000)]


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every kind of feature says of itself. Raises ValueError on settings that do not fit together."""

    told_by: ClassVar[str] = ""
    """The setting by which a file tells this kind from the others."""

    def __post_init__(self) -> None:
        for field in structs.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                force_setattr(self, field.name, tuple(value))
        if found := list(self.check(structs.asdict(self))):
            raise ValueError("\n".join(found))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """Each problem as `setting: what is wrong`; looks at the settings that are there."""
        yield from ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The sensors and features that it is made of."""
        found = getattr(self, "of", None) or getattr(self, self.told_by)
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def keeps_unit(self) -> bool:
        """Whether its values are in the unit of what it is made of."""
        return False

    def columns(self, name: str) -> tuple[str, ...]:
        """The names of its columns, where the feature itself has this name."""
        return (name,)


class Rolling(Feature, frozen=True, kw_only=True):
    """A statistic of the sensor's last values.

    `std` divides by n - 1; `slope` is that of the least-squares line over the readings' times, per second; `skew` and
    `kurtosis` (excess: 0 for a normal distribution) are those of the population, and missing while the line is flat.
    """

    told_by: ClassVar[str] = "rolling"

    of: str
    rolling: Literal["mean", "std", "min", "max", "median", "range", "rms", "skew", "kurtosis", "slope"]
    window: Window

    @property
    def keeps_unit(self) -> bool:
        """See `Feature`."""
        return self.rolling not in ("skew", "kurtosis", "slope")


class Lag(Feature, frozen=True, kw_only=True):
    """The sensor's value so many of its values ago."""

    told_by: ClassVar[str] = "lag"

    of: str
    lag: Steps

    @property
    def keeps_unit(self) -> bool:
        """See `Feature`."""
        return True


class Change(Feature, frozen=True, kw_only=True):
    """By how much the sensor is above its value so many of its values ago."""

    told_by: ClassVar[str] = "change"

    of: str
    change: Steps

    @property
    def keeps_unit(self) -> bool:
        """See `Feature`."""
        return True


class Rate(Feature, frozen=True, kw_only=True):
    """How fast the sensor changes, by the readings' times since its last value.

    Missing where the reading is not newer than that. A counter only rises: where it falls it `resets` (began anew at
    0) or went round at `wraps_at`.
    """

    told_by: ClassVar[str] = "rate"

    of: str
    rate: Literal["per_second", "per_minute", "per_hour", "per_day"]
    resets: bool = False
    wraps_at: Annotated[float, Meta(gt=0)] | None = None

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        if settings.get("resets") and settings.get("wraps_at") is not None:
            yield "wraps_at: a counter that falls either began anew or went round; remove resets or wraps_at"


class Band(Feature, frozen=True, kw_only=True):
    """The power of the sensor's last values between two frequencies, both included.

    From the Fourier transform of the last `window` values, less their mean, under a Hann taper, padded with zeros
    to a power of two. `share` is the part of all power, 0 to 1, missing while the line is flat; `absolute` is in
    the sensor's unit squared: a sine of amplitude A has A²/2, less what the taper leaks out of the band.
    """

    told_by: ClassVar[str] = "band"

    of: str
    band: tuple[float, ...]
    """Lowest and highest frequency in Hz."""
    window: Annotated[int, Meta(ge=4, le=4096)]
    sample_rate: Annotated[float, Meta(gt=0)]
    """The sensor's values a second (Hz)."""
    power: Literal["share", "absolute"] = "share"

    @property
    def padded(self) -> int:
        """The length of the transform: the window, or the next power of two."""
        return _padded(self.window)

    @property
    def bins(self) -> tuple[int, int]:
        """The first and the last frequency of the transform within the band."""
        return _bins(self.band, self.window, self.sample_rate)

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        band, rate, window = (settings.get(name) for name in ("band", "sample_rate", "window"))
        if band is None:
            return
        if len(band) != 2 or not 0 <= band[0] < band[1]:
            yield "band: say the lowest and the highest frequency in Hz, such as [10, 50]"
        elif rate is not None and band[1] > rate / 2:
            yield f"band: {rate:g} values a second (sample_rate) show nothing above {rate / 2:g} Hz"
        elif rate is not None and window is not None:
            first, last = _bins(band, window, rate)
            if first > last:
                apart = rate / _padded(window)
                yield f"band: {window} values (window) tell only {apart:.3g} Hz apart; take more, or a wider band"


class Crossings(Feature, frozen=True, kw_only=True):
    """How often the sensor's last values cross a line: their mean, zero, or a `level`.

    A value on the line counts with the side that the one before it was on.
    """

    told_by: ClassVar[str] = "crossings"

    of: str
    crossings: Literal["mean", "zero", "level"]
    window: Window
    level: float | None = None

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        if "crossings" not in settings or "level" not in settings:
            return
        if (settings["crossings"] == "level") == (settings["level"] is None):
            yield "level: goes with crossings: level, and with nothing else"


def _padded(window: int) -> int:
    return 1 << (window - 1).bit_length()


def _bins(band: tuple[float, ...], window: int, rate: float) -> tuple[int, int]:
    per_bin = rate / _padded(window)
    return max(1, math.ceil(band[0] / per_bin)), math.floor(band[1] / per_bin)
