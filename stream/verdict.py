"""How good a recorded run was, where labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors import quality
from stream.readings import epoch_seconds
from stream.recording import Episode, Series

__all__ = ["flagged", "quality_rows"]


def quality_rows(
    series: Series, episodes: Sequence[Episode], labels: NDArray[np.bool_] | None, *, skip: int = 0
) -> list[Mapping[str, str]]:
    """A row of a table for every detector, without the first `skip` readings; none without labels of both kinds."""
    if labels is None or len(labels) != len(series.times) or labels[skip:].all() or not labels[skip:].any():
        return []
    rows: list[Mapping[str, str]] = []
    for name, scores in series.scores.items():
        flags = flagged(series, [episode for episode in episodes if episode.opened.detector == name])
        found = quality.event_quality(
            *(column[skip:] for column in (series.times, labels, flags, series.machines))
        )
        hits = flags[skip:] & labels[skip:]
        rows.append(
            {
                "detector": name,
                "ROC AUC": f"{quality.roc_auc(labels[skip:], np.nan_to_num(scores[skip:])):.3f}",
                "anomalies found": f"{found.found} of {found.events}",
                "right alerts": f"{found.episodes - found.false_alarms} of {found.episodes}",
                "event F1": f"{found.f1:.2f}",
                "false/day": f"{found.false_alarms_per_day:.2f}",
                "rows found": f"{hits.sum() / labels[skip:].sum():.0%}",
                "rows wrongly": f"{(flags[skip:] & ~labels[skip:]).sum() / (~labels[skip:]).sum():.2%}",
            }
        )
    return rows


def flagged(series: Series, episodes: Sequence[Episode]) -> NDArray[np.bool_]:
    """Rows (n,) whose machine had an alert open: from opening to the last anomalous reading."""
    flags = np.zeros(len(series.times), dtype=bool)
    for episode in episodes:
        first, last = epoch_seconds(episode.opened.time), epoch_seconds(episode.last.last_seen)
        span = (series.times >= first - 1e-6) & (series.times <= last + 1e-6)
        flags |= span & (series.machines == episode.opened.machine)
    return flags
