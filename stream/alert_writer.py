"""Alerts as they are told: a decision with its reasons, sentence and recent past."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats
from detectors.features import RecentWindow
from stream.alerting import Episode, Event
from stream.alerts import PROCESS, Alert, Position, SensorReason, Window, episode_id, rfc3339
from stream.courses import courses
from stream.endings import NOBODY, closed_alert
from stream.ensemble import Decision, Ensemble, Part, Why
from stream.inputs import units_of
from stream.reasons import sentence
from stream.topology import Topology

__all__ = ["AlertWriter"]


class AlertWriter:
    """Writes a topology's alerts; `recent` holds each machine's last readings."""

    def __init__(self, topology: Topology, recent: RecentWindow) -> None:
        self._topology = topology
        self._recent = recent
        self._names = topology.source.names
        self._units = units_of(
            {sensor.name: sensor.unit for sensor in topology.source.sensors}, topology.features
        )

    def written(
        self, ensemble: Ensemble, decision: Decision, event: Event, why: Why, part: Part, i: int
    ) -> Alert:
        """The alert of this event at row `i` of the part, while the decision is the detectors' latest."""
        batch, episode = part.batch, event.episode
        machine, score = batch.machines[i], float(decision.decided[event.index])
        weights = {} if self._topology.combine is None else self._topology.combine.weights
        stretches = courses(
            ensemble.lanes, decision.scores, weights, event.index, float(batch.times[i]), len(why.shares)
        )
        columns = (_plain(part.columns[i]), _plain(why.expected), why.shares.tolist(), stretches)
        reasons = [SensorReason(*parts) for parts in zip(self._topology.columns, *columns, strict=True)]
        reasons.sort(key=lambda reason: -abs(reason.share))
        times, window = self._recent.window(int(part.slots[i]), part.slots, batch.values, batch.times, i)
        closed = event.kind == "closed"
        return Alert(
            id=self.name(episode, machine, ensemble.name),
            event=event.kind.value,
            type=PROCESS,
            sequence=episode.updates + (1 if closed else 0),
            topology=self._topology.name,
            machine=machine,
            detector=ensemble.name,
            severity=event.severity,
            score=score,
            threshold=event.threshold,
            probability=10.0**-score if self._topology.gives_probabilities else None,
            peak_score=episode.peak,
            anomalous_readings=episode.readings,
            first_seen=rfc3339(episode.first_seen),
            last_seen=rfc3339(episode.last_seen),
            time=rfc3339(float(batch.times[i])),
            reason=sentence(
                ensemble.name,
                event,
                score,
                reasons,
                self._units,
                calibrated=self._topology.gives_probabilities,
            ),
            contributions=reasons,
            nearest_example=_plain(np.array([why.nearest]))[0],
            model=decision.info,
            position=Position(0, int(part.offsets[i]), int(batch.rows[i])),
            window=Window(times.tolist(), {name: _plain(window[:, j]) for j, name in enumerate(self._names)}),
        )

    def closed(
        self,
        here: tuple[str, str],
        slot: int,
        episode: Episode,
        severity: str,
        reason: str,
        ensemble: Ensemble | None,
    ) -> Alert:
        """The event that ends an episode without a reading. `here`: machine and detector; `ensemble` is what decides
        by that name, None where nothing does."""
        return closed_alert(
            (self._topology.name, *here),
            episode,
            severity,
            self.past(slot),
            reason,
            threshold=episode.peak if ensemble is None else ensemble.threshold,
            model=NOBODY if ensemble is None else ensemble.info,
            calibrated=self._topology.gives_probabilities,
        )

    def name(self, episode: Episode, machine: str, detector: str) -> str:
        """The id of an episode's alert."""
        here = (self._topology.name, machine, detector, 0)
        return episode_id(*here, episode.offset, episode.row, episode.first_seen)

    def past(self, slot: int) -> Window:
        """The machine's last readings, up to now."""
        nothing = np.zeros(0, dtype=np.int64)
        times, values = self._recent.window(slot, nothing, np.zeros((0, len(self._names))), np.zeros(0), -1)
        return Window(times.tolist(), {name: _plain(values[:, j]) for j, name in enumerate(self._names)})


def _plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them: null where one is missing."""
    plain: list[float | None] = values.tolist()
    if np.isfinite(values).all():
        return plain
    return [value if value is not None and np.isfinite(value) else None for value in plain]
