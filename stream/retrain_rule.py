"""When a batch detector is trained anew, and on what: `retrain` of a topology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from detectors.base import Detector
from detectors.registry import ONLINE
from stream.cron import cron_problem, zone_problem
from stream.settings import Count, Seconds, Settings, refuse

__all__ = ["METRICS", "Drift", "Metric", "Quality", "Retrain", "retrain_problems"]

Metric = Literal["precision", "recall", "f1", "false_alarms_per_day"]
METRICS: tuple[Metric, ...] = ("precision", "recall", "f1", "false_alarms_per_day")


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of what the detector's scores, or its inputs, are like, machine by machine."""

    of: Literal["score", "inputs"] = "score"
    """What is watched: the scores of the model that serves, before calibration, or what it is shown."""
    detector: Detector = msgspec.field(default_factory=lambda: ONLINE["adwin"]())
    """What tells a drift: its score reaches its threshold."""
    every: Count = 10
    """Only every so many readings of a machine are looked at: neighbours are too much alike to be told apart."""
    machines: Count = 1
    """So many machines must drift."""
    within: Seconds = 86400.0
    """In such a time, by the readings."""


class Quality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How good the alerts of late were, as labels tell it."""

    window: Seconds
    """Alerts that opened so long ago at the most, by the readings' times."""
    metric: Metric
    threshold: Annotated[float, msgspec.Meta(ge=0)]
    """Trained below it; of `false_alarms_per_day` (of a machine) above it."""
    labels: Count = 5
    """Looked at from so many labels on."""

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if settings.get("window") == 0:
            yield "window: must be above 0"
        share = settings.get("metric") in ("precision", "recall", "f1")
        if share and (settings.get("threshold") or 0.0) > 1:
            yield f"threshold: a {settings['metric']} is a share, from 0 to 1"

    def is_worse(self, value: float) -> bool:
        """Whether a value asks for a training."""
        return value > self.threshold if self.metric == "false_alarms_per_day" else value < self.threshold


class Retrain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has a detector trained anew: any of `schedule`, `drift` and `quality`. What was learned is a challenger;
    where the detector has `promote_when` it runs as a shadow, and takes over when that is met."""

    schedule: str | None = None
    """A cron expression, `0 3 * * 1`."""
    timezone: str = "UTC"
    """That of the schedule."""
    drift: Drift | None = None
    quality: Quality | None = None
    window: Seconds | None = None
    """`window`, `metric` and `threshold` here are short for those of `quality`."""
    metric: Metric | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0)] | None = None
    source: Literal["stream", "capture"] | None = None
    """Trained on the past of the topology's stream, or on its capture. None: the stream, where it has one."""
    over: Seconds = 14 * 86400.0
    """So far back, from the newest reading."""
    rows: Count = 1_000_000
    """Readings at the most, the newest."""
    min_interval: Seconds = 6 * 3600.0
    """Between the beginnings of two trainings, those by command included."""
    per_week: Count = 7
    """Trainings in seven days, at the most."""
    timeout: Seconds = 3600.0
    """Seconds that a training may last."""
    promote: Literal["when_met", "by_command"] = "when_met"
    """Who promotes the shadow: `promote_when`, at the end of a window that meets it, or an operator."""

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))
        if self.window is not None and self.metric is not None and self.threshold is not None:
            quality = Quality(window=self.window, metric=self.metric, threshold=self.threshold)
            for name, value in (
                ("quality", quality),
                ("window", None),
                ("metric", None),
                ("threshold", None),
            ):
                force_setattr(self, name, value)

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        short = {
            name: settings[name]
            for name in ("window", "metric", "threshold")
            if settings.get(name) is not None
        }
        whens = [settings[name] for name in ("schedule", "drift", "quality") if name in settings]
        if len(whens) == 3 and not short and not any(when is not None for when in whens):
            yield "schedule: say when: schedule, drift or quality, at least one of them"
        if short and settings.get("quality") is not None:
            yield f"{next(iter(short))}: is said in quality; remove one of the two"
        elif 0 < len(short) < 3:
            missing = [name for name in ("window", "metric", "threshold") if name not in short]
            yield f"{next(iter(short))}: needs {' and '.join(missing)} beside it"
        elif short:
            yield from Quality.check(short)
        if (schedule := settings.get("schedule")) is not None and (problem := cron_problem(schedule)):
            yield f"schedule: {problem}"
        if problem := zone_problem(settings.get("timezone", "UTC")):
            yield f"timezone: {problem}"
        for name in ("over", "timeout"):
            if settings.get(name) == 0:
                yield f"{name}: must be above 0"
        if (settings.get("timeout") or 1.0) > 86400.0:
            yield "timeout: at most 86400"


def retrain_problems(settings: Settings) -> Iterator[str]:
    """Each problem of the detectors' `retrain` that shows only in their topology, as `place: what is wrong`."""
    source = settings.get("source")
    for name, spec in (settings.get("detectors") or {}).items():
        rule: Retrain | None = getattr(spec, "retrain", None)
        if rule is None or source is None or "capture" not in settings:
            continue
        place = f"detectors.{name}.retrain"
        wanted = rule.source or ("stream" if source.queue is None else "capture")
        if wanted == "stream" and source.queue is not None:
            yield f"{place}.source: an existing queue keeps nothing that was read; say capture"
        if wanted == "capture" and settings["capture"] is None:
            yield f"{place}.source: there is no capture to train on; add capture: {{}} to the topology"
        if rule.drift is not None:
            inputs: tuple[str, ...] = ("score",) if rule.drift.of == "score" else ("input",)
            try:
                rule.drift.detector.build(inputs)
            except ValueError as error:
                yield f"{place}.drift.detector: {error}"
