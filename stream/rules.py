"""How scores become decisions, as data: the alert rule, its budget, combination, protection and maintenance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from detectors.openings import OpeningRule
from stream.settings import Count, PerDay, Seconds, Settings, epoch, is_name, is_time, refuse

__all__ = [
    "COMBINED",
    "AlertRule",
    "Combination",
    "Learning",
    "Maintenance",
    "StartFrom",
    "automatic_rule",
]

StartFrom = Literal["sister"] | dict[str, str]
"""From whom a machine that was never seen before learns: its sister, or who is named for a pattern of names."""


COMBINED = "combined"
"""The name under which detectors that decide together raise alerts."""


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which no alert opens and nothing is learned: somebody works on the machine."""

    start: str
    end: str
    every: Seconds | None = None
    """It comes again after so long (`7d`); None: once."""
    machines: tuple[str, ...] = ("*",)
    """Machines it is for, as patterns (`pump-*`)."""

    def __post_init__(self) -> None:
        force_setattr(self, "machines", tuple(self.machines))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        times = {name: settings[name] for name in ("start", "end") if settings.get(name) is not None}
        odd = [name for name, text in times.items() if not is_time(text)]
        for name in odd:
            yield f'{name}: "{times[name]}" is not an RFC 3339 time such as 2024-05-01T22:00:00Z'
        if odd or len(times) < 2:
            return
        length = epoch(times["end"]) - epoch(times["start"])
        if length <= 0:
            yield "end: must be after start"
        every = settings.get("every")
        if every is not None and every < length:
            yield "every: must not be shorter than the time from start to end"


class _Unstated:
    """Marks the value of a setting that nobody stated: the word `auto` may choose another, what is stated stays."""


class _Whole(_Unstated, int):
    """A whole number that nobody stated."""


class _Real(_Unstated, float):
    """A number that nobody stated."""


class AlertRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When scores become an alert, and when it ends. A score is anomalous from its detector's threshold.

    With the word `auto` for detectors, `hold`, `at_once`, `close_after`, `hysteresis`, `cooldown_readings` and
    `escalation` are as that chooses (see `automatic_rule`), each of them that is not stated."""

    hold: Count = _Whole(1)
    """An alert opens with this many anomalous readings."""
    within: Annotated[int, msgspec.Meta(ge=1, le=60)] | None = None
    """They lie among this many readings in a row; None: all of them are anomalous."""
    at_once: Annotated[float, msgspec.Meta(ge=1)] | None = _Real(math.inf)
    """One reading that scores so many times the threshold opens an alert, whatever `hold` says; None: none does."""
    close_after: Annotated[int, msgspec.Meta(ge=0)] = _Whole(3)
    """It closes after this many normal readings in a row; 0: an alert is a moment, over with its reading."""
    hysteresis: Annotated[float, msgspec.Meta(ge=0, lt=1)] = _Real(0.1)
    """While it is open, a reading is normal only below threshold x (1 - hysteresis)."""
    cooldown: Seconds = 0.0
    """After it closed, none opens for this long (by the readings' time)."""
    cooldown_readings: Annotated[int, msgspec.Meta(ge=0)] = _Whole(0)
    """And none for so many of the machine's readings."""
    severities: dict[str, float] = msgspec.field(default_factory=lambda: {"warning": 1.0, "critical": 2.0})
    """Severity from score / threshold, lowest first; the highest reached is the alert's."""
    probability: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """A reading is anomalous where a normal one scores as high with no more than this probability. Needs
    `calibration`, and takes the place of the detectors' thresholds; one in 10,000 where neither is stated."""
    budget: PerDay | None = None
    """False alarms a day that may be raised (`2/day`): thresholds follow from it and from how often a machine is
    read. Detectors that alert each by itself share it in equal parts. Needs `calibration`."""
    budget_per: Literal["machine", "topology"] = "machine"
    """Whose budget it is: each machine's own, or one that all machines share, whoever is known by then."""
    alpha_spending: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    """Decades of probability by which a reading must be rarer for each decade of the machine's readings beyond
    the first thousand: the longer a machine is known, the more unusual is what still counts. With 1 alarms come
    ever more seldom (as many from the 1,000th to the 10,000th reading as from there to the 100,000th). Needs
    `calibration`."""
    escalation: Annotated[float, msgspec.Meta(ge=0, le=5)] = _Real(0.0)
    """Decades of probability by which an alert must be rarer for each decade of alerts that the machine had: who
    cries wolf is heard less (the threshold rises by escalation x log10(1 + alerts)). Needs
    `calibration`, or `detectors: auto`."""
    escalation_memory: Annotated[float, msgspec.Meta(gt=0, extra={"unit": "seconds"})] = 90 * 86400.0
    """An alert counts half after so long."""
    direction: Literal["both", "up", "down"] = "both"
    """`up`: only where the sensor with the largest share is higher than expected; `down`: only where it is lower.
    Where its last readings as a whole were compared, the one that differs most decides."""
    min_deviation: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """That sensor is off by at least this fraction of what was expected (0.05: 5 %); see also the sensors' own
    `min_deviation`, for a line at 0 the only one that helps. An open alert goes on down to half of it. Where the
    detector expects no value, this does not count; where it compared the last readings as a whole, that of them
    counts which differs most."""
    maintenance: tuple[Maintenance, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "maintenance", tuple(self.maintenance))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        severities = settings.get("severities", {"warning": 1.0})
        ratios = [ratio for ratio in severities.values() if ratio is not None]
        if not severities or ratios != sorted(ratios) or ratios[:1] != [1.0]:
            yield "severities: write them lowest first, the first at 1.0"
        for name in severities:
            if not is_name(name):
                yield f'severities: "{name}" must be lower-case letters, digits, - or _'
        hold, within = settings.get("hold", 1), settings.get("within")
        if hold is not None and within is not None and within < hold:
            yield f"within: {hold} anomalous readings (hold) do not fit into {within}"
        if settings.get("budget") is not None and settings.get("probability") is not None:
            yield "budget: the threshold follows from it; remove either budget or probability"
        if within is None and hold is not None and hold > 60:
            yield "hold: at most 60"
        if hold == 1 and settings.get("at_once") not in (None, math.inf):
            yield "at_once: one reading opens an alert already; remove it, or let hold be 2 or more"
        if settings.get("budget_per", "machine") != "machine" and settings.get("budget", 1.0) is None:
            yield "budget_per: there is no budget to share; state one, such as budget: 2/day"

    def settled(self, chosen: AlertRule | None = None) -> AlertRule:
        """The rule that holds: what nobody stated is as the `chosen` rule has it, or as it is by itself."""
        found: dict[str, object] = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, _Unstated):
                value = getattr(chosen or self, name)
            found[name] = float(value) if isinstance(value, _Real) else value
            found[name] = int(value) if isinstance(value, _Whole) else found[name]
        if found["at_once"] is None or (found["hold"] == 1 and isinstance(self.at_once, _Unstated)):
            found["at_once"] = math.inf
        return AlertRule(**found)  # type: ignore[arg-type]

    @property
    def summary(self) -> str:
        """When an alert opens and ends, in a line for whoever reads what is at work."""
        opens = "at the first anomalous reading"
        if self.hold > 1:
            among = f"of {self.within}" if self.within not in (None, self.hold) else "in a row"
            opens = f"after {self.hold} anomalous readings {among}"
        if self.at_once is not None and self.at_once < math.inf:
            opens += f", or one at {self.at_once:g} times the threshold"
        ends = f"closes after {self.close_after} normal"
        rests = [
            f"{self.cooldown:g} s" if self.cooldown else "",
            f"{self.cooldown_readings:,} readings" if self.cooldown_readings else "",
        ]
        parts = [
            f"opens {opens}",
            ends if self.close_after else "is over with its reading",
            f"rests for {' and '.join(filter(None, rests))}" if any(rests) else "",
            f"escalation {self.escalation:g}" if self.escalation else "",
        ]
        return "; ".join(filter(None, parts))

    @property
    def openings(self) -> OpeningRule:
        """What tells how often it would open."""
        return OpeningRule(
            self.hold,
            self.within or self.hold,
            self.at_once or math.inf,
            self.close_after,
            self.hysteresis,
            self.cooldown,
            self.cooldown_readings,
        )

    @property
    def shares_budget(self) -> bool:
        """Whether all machines share one budget."""
        return self.budget is not None and self.budget_per == "topology"


class Combination(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All detectors decide together: their calibrated scores become one. Needs `calibration`."""

    method: Literal["mean", "max", "k_of_n"] = "mean"
    """`mean` of the log-probabilities; `max`: the least probable counts; `k_of_n`: the k-th least probable."""
    k: Count = 2
    weights: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = {}
    """Weight of a detector, 1 where none is stated (`mean` only)."""
    calibrate: bool = True
    """The combined score is calibrated once more, so that it is a probability, too. False: it stays a mean (or the
    like) of log-probabilities, which no budget can be held against; `alert.probability` is then 10^-threshold."""


class Learning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What online detectors learn: while an alert is open, and from another machine before the first reading."""

    while_open: bool = False
    """False: nothing, so that a fault does not become normal."""
    accept_after: Seconds = 86400.0
    """From so long after an alert's first anomalous reading its readings are learned, as a new regime. It does not
    close then, but once the detector has learned so much that they score below the threshold: mostly within 200
    readings, with charts (`cusum`, `mewma`, `mcusum`) after some hundreds."""
    start_from: StartFrom | None = None
    """A machine that was never seen before starts with what another one has learned once that is warm: `sister`, the
    lowest numbered of those named alike (`pump-01` for `pump-07`); or by pattern (`{"pump-*": pump-01}`)."""


def automatic_rule(sensors: int) -> AlertRule:
    """The rule that goes with `detectors: auto`.

    Of one sensor an alert is a moment and then rests for 120 readings: what is unlike the past soon is a part of it;
    and each alert must be rarer than those before.
    Of several an alert opens with the third anomalous reading in a row, or with one at three times the threshold, and
    lasts as long as the shift does.
    """
    if sensors == 1:
        return AlertRule(close_after=0, cooldown_readings=120, escalation=1.5)
    return AlertRule(hold=3, at_once=3.0, close_after=10, hysteresis=0.2)
