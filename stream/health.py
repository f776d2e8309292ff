"""Sick sensors and machines: masked before anything is scored, and told in alerts of their own types."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Rows, Slots
from detectors.features import RecentWindow
from detectors.health import Ailment, Finding, ailing
from stream.alerts import Alert, ModelInfo, Position, SensorReason, Window, episode_id, rfc3339
from stream.endings import unwatched
from stream.readings import LARGEST, Batch
from stream.residents import Residents
from stream.topology import HEALTH, Sensor, Topology

__all__ = ["HealthCheck", "ended_with_health"]


class HealthCheck:
    """Examines every reading of a topology before it is scored. A state table by slot, part of the checkpoint.

    Only machines in memory are watched for silence: those that wait in the checkpoint are not missed.
    """

    def __init__(self, topology: Topology, residents: Residents, recent: RecentWindow) -> None:
        source, recipe = topology.source, topology.health
        assert recipe is not None  # noqa: S101 - who builds this has looked
        self._topology = topology.name
        self._sensors = source.sensors
        self._residents = residents
        self._recent = recent
        told = source.out_of_range == "alert"
        bounds = np.array([_bounds(sensor) if told else (-np.inf, np.inf) for sensor in source.sensors])
        stated = [recipe.stuck_after if s.stuck_after is None else s.stuck_after for s in source.sensors]
        self._table = recipe.build(bounds, np.array(stated, dtype=np.float64))
        self._severity = next(iter(topology.alert.severities))
        digest = hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()
        self._info = ModelInfo(HEALTH, "online", f"sha256:{digest}", HEALTH)

    def examine(
        self, batch: Batch, slots: Slots, offsets: NDArray[np.int64]
    ) -> tuple[Batch, list[tuple[int, int, Alert]], Slots, dict[int, Mask]]:
        """The batch with NaN for what sick sensors say; alerts that open or close, each by row and before (-1) those
        of detectors; the slots of machines found silent; and by row the sensors (n_sensors,) that are masked from
        there on, but not because they are silent. `slots` and `offsets` (n,) by row."""
        found = self._table.examine(slots, batch.values, batch.times, offsets, batch.rows)
        batch = replace(batch, values=found.values)
        silent = [item.slot for item in found.findings if item.ailment == "machine_silent" and item.began]
        named = [(item, self._residents.name(item.slot)) for item in found.findings]
        named.sort(key=lambda pair: (pair[0].index, pair[0].slot != slots[pair[0].index], pair[1]))
        alerts = [
            (item.index, -1, self._alert(item, machine, batch, slots, offsets)) for item, machine in named
        ]
        masked: dict[int, Mask] = {}
        for item in found.findings:
            if item.began and item.sensor >= 0 and item.ailment != "sensor_silent":
                masked.setdefault(item.index, np.zeros(len(self._sensors), np.bool_))[item.sensor] = True
        return batch, alerts, np.array(silent, dtype=np.int64), masked

    def accept(self, slots: Slots) -> Slots:
        """An operator takes what ails the sensors of these slots for normal; the slots where that could be."""
        return self._table.accept(slots)

    def forget(self, slots: Slots) -> None:
        """The machines in these slots wait in the checkpoint from now on."""
        self._table.forget(slots)

    def sick(self) -> dict[Ailment, int]:
        """How many sensors, and machines, have each ailment now."""
        return self._table.sick()

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        self._table.restore(slots, rows)

    def _alert(
        self, item: Finding, machine: str, batch: Batch, slots: Slots, offsets: NDArray[np.int64]
    ) -> Alert:
        i, began, time = item.index, item.began, float(batch.times[item.index])
        times, values = self._recent.window(item.slot, slots, batch.values, batch.times, i)
        sensor = self._sensors[item.sensor] if item.sensor >= 0 else None
        return Alert(
            id=_id(self._topology, machine, item, sensor),
            event="opened" if began else "closed",
            type=item.ailment,
            sequence=0 if began else 1,
            topology=self._topology,
            machine=machine,
            detector=HEALTH,
            severity=self._severity,
            score=float(began),
            threshold=1.0,
            peak_score=1.0,
            anomalous_readings=item.count,
            first_seen=rfc3339(item.since),
            last_seen=rfc3339(time),
            time=rfc3339(time),
            reason=_sentence(item, machine, sensor),
            contributions=[] if sensor is None else [_reason(item, sensor)],
            model=self._info,
            position=Position(0, int(offsets[i]), int(batch.rows[i])),
            window=Window(
                times.tolist(), {s.name: _plain(values[:, j]) for j, s in enumerate(self._sensors)}
            ),
        )


def ended_with_health(
    topology: Topology,
    machines: Sequence[str],
    slots: Slots,
    rows: Rows,
    past: Callable[[int], Window],
) -> list[Alert]:
    """The events that end what a health check that is no more left open. `rows` (n,) of its snapshot are those of
    `machines` in `slots` (n,). `past` gives the last readings in a slot."""
    alerts = []
    for item in ailing(rows):
        machine, window = machines[item.index], past(int(slots[item.index]))
        last = rfc3339(window.times[-1] if window.times else item.since)
        alert = Alert(
            id=_id(
                topology.name,
                machine,
                item,
                topology.source.sensors[item.sensor] if item.sensor >= 0 else None,
            ),
            event="closed",
            type=item.ailment,
            sequence=1,
            topology=topology.name,
            machine=machine,
            detector=HEALTH,
            severity=next(iter(topology.alert.severities)),
            score=0.0,
            threshold=1.0,
            peak_score=1.0,
            anomalous_readings=item.count,
            first_seen=rfc3339(item.since),
            last_seen=last,
            time=last,
            reason=unwatched(HEALTH, machine, gone=True),
            contributions=[],
            model=ModelInfo(HEALTH, "online", "", HEALTH),
            position=Position(0, item.offset, item.row),
            window=window,
        )
        alerts.append(alert)
    return alerts


def _id(topology: str, machine: str, item: Finding, sensor: Sensor | None) -> str:
    whose = f"{HEALTH}/{item.ailment}/{sensor.name if sensor else ''}"
    return episode_id(topology, machine, whose, 0, item.offset, item.row, item.since)


def _bounds(sensor: Sensor) -> tuple[float, float]:
    """The least and the largest value that is possible."""
    low = -LARGEST if sensor.minimum is None else sensor.minimum
    return max(low, -LARGEST), min(LARGEST if sensor.maximum is None else sensor.maximum, LARGEST)


def _reason(item: Finding, sensor: Sensor) -> SensorReason:
    """The sick sensor bears all of it."""
    value, usual = _plain(np.array([item.value, item.usual]))
    if item.ailment != "unit_jump":
        usual = None
    low = value is not None and (
        (usual is not None and value < usual) or (sensor.minimum is not None and value < sensor.minimum)
    )
    return SensorReason(sensor.name, value, usual, -1.0 if low else 1.0)


def _sentence(item: Finding, machine: str, sensor: Sensor | None) -> str:
    """What a technician should know, in one sentence."""
    name = machine if sensor is None else sensor.name
    since = rfc3339(round(item.since)).replace("T", " ")
    if not item.began:
        return _RIGHT_AGAIN[item.ailment].format(name=name, count=item.count)
    if item.ailment == "clock_skew":
        side = "ahead of" if item.value > 0 else "behind"
        return f"The clock of {name} is {_span(abs(item.value))} {side} the newest readings: it may be set wrong."
    if item.ailment == "machine_silent":
        return f"{name} has sent nothing since {since}, while others did: it, or its line, may be down."
    if item.ailment == "sensor_silent":
        return f"{name} has been missing for {item.count} readings, since {since}: the sensor may be dead."
    if item.ailment == "sensor_stuck":
        return f"{name} has stood at exactly {item.value:.6g} for {item.count} readings: the sensor may be stuck."
    if item.ailment == "unit_jump":
        jump = f"from about {item.usual:.4g} to {item.value:.4g}"
        return f"{name} jumped {jump}, {item.unit}: its unit may have changed."
    unit = f" {sensor.unit}" if sensor and sensor.unit else ""
    return f"{name} says {item.value:.6g}{unit}, but can only be {_range(sensor)}{unit}: the sensor may be broken."


_RIGHT_AGAIN = {
    "sensor_silent": "{name} is back, after {count} readings without it.",
    "sensor_out_of_range": "{name} is back in its range, after {count} readings out of it.",
    "sensor_stuck": "{name} moves again, after {count} readings at one value.",
    "unit_jump": "{name} is back in its unit, after {count} readings in another.",
    "clock_skew": "The clock of {name} is right again, after {count} readings.",
    "machine_silent": "{name} sends again.",
}


def _range(sensor: Sensor | None) -> str:
    low, high = (-LARGEST, LARGEST) if sensor is None else _bounds(sensor)
    if low == -LARGEST:
        return f"{high:g} at the most"
    return f"{low:g} to {high:g}" if high < LARGEST else f"{low:g} at the least"


def _span(seconds: float) -> str:
    """A time in the unit that suits: 90 s, 12 min, 3.5 h, 2 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them: null where one is missing."""
    return [None if value != value else value for value in values.tolist()]
