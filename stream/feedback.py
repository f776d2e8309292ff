"""What people said of alerts: recent alerts and their labels, labelled windows.

All of it is in the checkpoint, each alert and window a row that is written when it changes, in the transaction of the
readings or of the command that changed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from detectors.base import Floats
from stream.alerts import PROCESS, Alert, ModelInfo
from stream.readings import epoch_seconds
from stream.training_data import Marked
from stream.windows import PlantTime

__all__ = ["Feedback", "Raised", "Window"]

_ALERT, _WINDOW, _UNTOLD, _SPAN = "raised:", "labelled:", "untold:", "seen:"
_KEPT = 2000
"""Alerts without a label that are known, alerts with one, and windows: so many of each, the newest."""
_SHOWN = 20


class Raised(msgspec.Struct):
    """An alert that was raised, and what was said of it. Times are the readings'."""

    id: str
    machine: str
    detector: str
    threshold: float
    first_seen: float
    opened: float
    closed: float | None = None
    held: bool = False
    """An operator closed it as what is not to be learned, and its machine has not calmed down since."""
    label: Literal["true", "false"] | None = None
    learned: bool = False
    """Said to be false, and to be learned."""
    at: float = 0.0
    """When it was labelled."""
    model: ModelInfo | None = None
    """What raised it, where that was written down."""

    @property
    def end(self) -> float | None:
        """When what it told of was over; None while it lasts."""
        return None if self.held else self.closed


class Window(msgspec.Struct, frozen=True):
    """A time of a machine that somebody labelled; both ends are in it."""

    machine: str
    start: float
    end: float
    label: Literal["anomaly", "normal"]
    at: float


_Item = TypeVar("_Item", Raised, Window)


class Feedback:
    """The alerts of a topology and their labels.

    `follows`: with every commit it is written down when readings were seen, not only with other changes."""

    def __init__(self, *, follows: bool = False) -> None:
        self.seen: float | None = None
        """The earliest time of all readings."""
        self.plant = PlantTime()
        self._follows = follows
        self.alerts: dict[str, Raised] = {}
        """Those of which nobody said anything, by id, the newest last."""
        self.labelled: dict[str, Raised] = {}
        self.windows: dict[str, Window] = {}
        """By the command that marked them."""
        self.version = 0
        """Changes with each label."""
        self._held: dict[tuple[str, str], Raised] = {}
        """Those that an operator closed and that last, by what raised them and machine."""
        self._untold: dict[str, Alert] = {}
        self._rows: dict[str, dict[str, Any] | None] = {}

    def rows(self) -> dict[str, tuple[dict[str, Any] | None, None]]:
        """What the next commit writes of it, by name; None where something is gone."""
        rows, self._rows = self._rows, {}
        if rows or self._follows:
            rows[_SPAN] = {"seen": self.seen, "plant": msgspec.to_builtins(self.plant)}
        return {name: (row, None) for name, row in rows.items()}

    def restore(self, saved: Mapping[str, tuple[Any, Any]]) -> None:
        """Take over what a checkpoint holds."""
        span = (saved.get(_SPAN) or ({},))[0] or {}
        self.seen, self.plant = span.get("seen"), msgspec.convert(span.get("plant", {}), PlantTime)
        for alert in sorted(_saved(saved, _ALERT, Raised), key=lambda alert: alert.opened):
            (self.labelled if alert.label else self.alerts)[alert.id] = alert
        self._held = {(it.detector, it.machine): it for it in self.labelled.values() if it.held}
        names = (name for name, row in saved.items() if name.startswith(_WINDOW) and row[0])
        windows = {name.removeprefix(_WINDOW): msgspec.convert(saved[name][0], Window) for name in names}
        self.windows = dict(sorted(windows.items(), key=lambda item: item[1].at))
        self._untold = {alert.id: alert for alert in _saved(saved, _UNTOLD, Alert)}
        self.version += 1

    def find(self, name: str) -> Raised | None:
        """The alert of an id, where it is known."""
        return self.alerts.get(name) or self.labelled.get(name)

    @property
    def now(self) -> float | None:
        """What time it is in the plant, by its readings; None before the first."""
        return self.plant.now

    def observe(
        self, alerts: Iterable[Alert], machines: Sequence[str], times: Floats, rows: Sequence[int] = ()
    ) -> list[float]:
        """Alert events in order, and the machines and times (n,) of the readings of which they came; what time it was
        in the plant at some of these, which are in order."""
        if len(times):
            first = float(times.min())
            self.seen = first if self.seen is None else min(self.seen, first)
        at = self.plant.add(machines, times, rows)
        for alert in alerts:
            if alert.type != PROCESS:
                continue
            time = epoch_seconds(alert.time)
            if alert.event == "opened":
                self.calmed(alert.detector, alert.machine, time)
                raised = Raised(
                    id=alert.id,
                    machine=alert.machine,
                    detector=alert.detector,
                    threshold=alert.threshold,
                    first_seen=epoch_seconds(alert.first_seen),
                    opened=time,
                    model=alert.model,
                )
                self.alerts[alert.id] = raised
                self._write(raised)
                self._forget(_ALERT, self.alerts)
            elif alert.event == "closed" and (known := self.find(alert.id)) is not None:
                known.closed = time
                self._write(known)
        return at

    def label(self, raised: Raised, label: Literal["true", "false"], *, learned: bool, at: float) -> None:
        """Somebody says whether an alert was one; the last word counts."""
        raised.label, raised.learned, raised.at = label, learned, at
        self.alerts.pop(raised.id, None)
        self.labelled.pop(raised.id, None)
        self.labelled[raised.id] = raised
        self._write(raised)
        self._forget(_ALERT, self.labelled)
        self.version += 1

    def mark(self, name: str, window: Window) -> None:
        """Somebody says what a time of a machine was. `name` is that of the command."""
        self.windows[name] = window
        self._rows[_WINDOW + name] = msgspec.to_builtins(window)
        self._forget(_WINDOW, self.windows)
        self.version += 1

    @property
    def open(self) -> list[Raised]:
        """Those of which nobody heard that they were closed."""
        return [raised for raised in self.lasting if raised.closed is None]

    @property
    def lasting(self) -> list[Raised]:
        """Those that are open, or were closed by an operator and have not calmed down."""
        known = (*self.alerts.values(), *self.labelled.values())
        return [raised for raised in known if raised.end is None]

    def gone(self, raised: Raised) -> None:
        """It does not last any more, and nobody told when that ended."""
        if raised.closed is None:
            raised.closed = raised.opened
        self._end(raised, raised.closed)

    def hold(self, raised: Raised) -> None:
        """An operator closed it, and it lasts until its machine has calmed down: nothing of it is learned."""
        raised.held = True
        self._held[raised.detector, raised.machine] = raised
        self._write(raised)

    def release(self, raised: Raised) -> None:
        """It is to be learned after all, and so was over when it was closed."""
        if raised.held and raised.closed is not None:
            self._end(raised, raised.closed)

    def calmed(self, detector: str, machine: str, time: float) -> None:
        """With the machine's reading of this time ended what an operator had closed, if there was any."""
        raised = self._held.get((detector, machine))
        if raised is not None and self.find(raised.id) is raised:
            self._end(raised, time)

    def closed(self, alerts: Iterable[Alert]) -> None:
        """These were closed without a reading, and are to be told once that is committed."""
        for alert in alerts:
            self._untold[alert.id] = alert
            self._rows[_UNTOLD + alert.id] = msgspec.to_builtins(alert)
            if (known := self.find(alert.id)) is not None:
                known.closed = epoch_seconds(alert.time)
                self._write(known)

    @property
    def untold(self) -> list[Alert]:
        """Alerts that were closed without a reading, of which nobody knows whether that was told."""
        return list(self._untold.values())

    def told(self) -> None:
        """They were told."""
        self._rows |= {_UNTOLD + name: None for name in self._untold}
        self._untold.clear()

    def marked(self) -> list[Marked]:
        """What a training leaves out, and what it keeps, the last word last."""
        found = [
            (window.at, Marked(window.machine, window.start, window.end, window.label == "normal"))
            for window in self.windows.values()
        ]
        for alert in self.labelled.values():
            found.append((alert.at, Marked(alert.machine, alert.first_seen, alert.end, alert.learned)))
        return [marked for _, marked in sorted(found, key=lambda item: item[0])]

    def counts(self) -> dict[str, int]:
        """How many labels are kept, by what they say."""
        said = [alert.label for alert in self.labelled.values()]
        marked = [window.label for window in self.windows.values()]
        names = ("true", "false", "anomaly", "normal")
        return {name: said.count(name) + marked.count(name) for name in names}  # type: ignore[arg-type]

    def latest(self) -> list[dict[str, Any]]:
        """The last labels, the newest last."""
        alerts = [(alert.at, {"alert": alert.id, **_plain(alert)}) for alert in self.labelled.values()]
        windows = [(window.at, _plain(window)) for window in self.windows.values()]
        return [plain for _, plain in sorted([*alerts, *windows], key=lambda item: item[0])[-_SHOWN:]]

    def _end(self, raised: Raised, time: float) -> None:
        raised.held, raised.closed = False, max(time, raised.closed or time)
        self._held.pop((raised.detector, raised.machine), None)
        self._write(raised)

    def _write(self, raised: Raised) -> None:
        self._rows[_ALERT + raised.id] = msgspec.to_builtins(raised)

    def _forget(self, prefix: str, items: dict[str, _Item]) -> None:
        while len(items) > _KEPT:
            over = (name for name, item in items.items() if item.end is not None)
            oldest = next(over, next(iter(items)))
            del items[oldest]
            self._rows[prefix + oldest] = None


_Kind = TypeVar("_Kind", Raised, Alert)


def _saved(saved: Mapping[str, tuple[Any, Any]], prefix: str, kind: type[_Kind]) -> Iterator[_Kind]:
    return (
        msgspec.convert(row[0], kind) for name, row in saved.items() if name.startswith(prefix) and row[0]
    )


def _plain(item: Raised | Window) -> dict[str, Any]:
    hidden: Sequence[str] = ("id", "threshold", "first_seen", "model")
    found: dict[str, Any] = msgspec.to_builtins(item)
    return {name: value for name, value in found.items() if name not in hidden}
