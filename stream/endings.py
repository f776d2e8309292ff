"""Alerts that end without a reading: an operator closes them, or nothing watches their machine any more."""

from __future__ import annotations

from dataclasses import fields

from detectors.base import Rows
from stream.alerting import Episode, EventKind
from stream.alerts import PROCESS, Alert, ModelInfo, Position, Window, episode_id, rfc3339

__all__ = ["ALERTS", "NOBODY", "closed_alert", "kept_episode", "unwatched"]

ALERTS = "alert:"
"""What the names of alert tables begin with; the name of what decides follows."""
NOBODY = ModelInfo("", "", "", "")
"""In place of a model of which nothing is known any more."""


def closed_alert(
    here: tuple[str, str, str],
    episode: Episode,
    severity: str,
    window: Window,
    reason: str,
    *,
    threshold: float,
    model: ModelInfo,
    calibrated: bool,
) -> Alert:
    """The event that ends an episode that was open. `here`: topology, machine, detector. It bears the time of the
    newest reading in `window`, and the position of the reading that opened the alert."""
    topology, machine, detector = here
    return Alert(
        id=episode_id(*here, 0, episode.offset, episode.row, episode.first_seen),
        event=EventKind.CLOSED.value,
        type=PROCESS,
        sequence=episode.updates + 1,
        topology=topology,
        machine=machine,
        detector=detector,
        severity=severity,
        score=episode.peak,
        threshold=threshold,
        probability=10.0**-episode.peak if calibrated else None,
        peak_score=episode.peak,
        anomalous_readings=episode.readings,
        first_seen=rfc3339(episode.first_seen),
        last_seen=rfc3339(episode.last_seen),
        time=rfc3339(window.times[-1] if window.times else episode.last_seen),
        reason=reason,
        contributions=[],
        model=model,
        position=Position(0, episode.offset, episode.row),
        window=window,
    )


def unwatched(detector: str, machine: str, *, gone: bool) -> str:
    """Why an alert ends that nothing can close any more. `gone`: the topology has no such detector, or it decides
    nothing by itself."""
    why = "the topology was changed" if gone else 'its "machines" were changed'
    return f'Closed because "{detector}" no longer watches {machine}: {why}.'


def kept_episode(rows: Rows, index: int) -> Episode:
    """An episode as an alert table's snapshot has it."""
    return Episode(**{field.name: rows[field.name][index].item() for field in fields(Episode)})
