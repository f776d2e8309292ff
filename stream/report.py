"""A run as one self-contained HTML page: figures of readings, scores, thresholds, alerts and swaps."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats
from stream.recording import Episode, Recording, Series

__all__ = ["Section", "write_report"]

_MOST_POINTS = 2000
_MOST_SPANS = 60
_MOST_MACHINES = 6
_MOST_SENSORS = 12
_MOST_ALERTS = 200
_HIDDEN_BELOW = 8
"""A sensor whose range is this many times smaller than the axis could not be read on it."""
_LOG_FROM = 20
"""A score this many times its threshold puts the axis on a logarithmic scale."""
_COLOURS = {
    "alert": "#d62728",
    "open": "rgba(214,39,40,0.15)",
    "label": "rgba(255,165,0,0.28)",
    "swap": "#6a3d9a",
    "threshold": "#222222",
}
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #f6f7f9; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 8px 0 2px; } h2 { font-size: 20px; margin: 36px 0 6px; } h3 { font-size: 16px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { background: #fff; border: 1px solid #dfe4ea; border-radius: 8px; padding: 10px 16px; min-width: 120px; }
.card b { display: block; font-size: 21px; } .card span { color: #5b6875; font-size: 13px; }
.figure, .table { background: #fff; border: 1px solid #dfe4ea; border-radius: 8px; padding: 8px; margin: 12px 0; }
.table { overflow: auto; max-height: 460px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 5px 9px; border-bottom: 1px solid #eceff3; vertical-align: top; }
th { position: sticky; top: 0; background: #fff; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.warning { color: #b26a00; } .critical { color: #c21f1f; font-weight: 600; }
pre { background: #fff; border: 1px solid #dfe4ea; border-radius: 8px; padding: 12px; overflow: auto; }
.note { color: #5b6875; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One topology's part of the page. `labels` (n,) by row of the recording, or None; `quality` rows of a table."""

    title: str
    recording: Recording
    labels: NDArray[np.bool_] | None = None
    quality: Sequence[Mapping[str, str]] = ()
    notes: Sequence[str] = ()
    topology_text: str = ""
    cards: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page; it needs no network and no other file. Raises OSError."""
    from plotly.offline import get_plotlyjs

    body = "\n".join(_section(section) for section in sections)
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main><h1>{html.escape(title)}</h1>"
        f"<p class='note'>{html.escape(subtitle)}</p>{body}</main></body></html>",
        encoding="utf-8",
    )


def _section(section: Section) -> str:
    series = section.recording.series()
    episodes = section.recording.episodes()
    parts = [f"<h2>{html.escape(section.title)}</h2>", _cards(section.cards)]
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in section.notes]
    if section.quality:
        parts.append("<h3>Against the labels</h3>" + _table(section.quality))
    for machine in _machines_shown(series, episodes):
        rows = np.flatnonzero(series.machines == machine)
        labels = None if section.labels is None else section.labels[rows]
        here = [episode for episode in episodes if episode.opened.machine == machine]
        parts.append(_figure(section.recording, series, rows, labels, here, machine))
    if (left := len(set(series.machines.tolist())) - _MOST_MACHINES) > 0:
        parts.append(f"<p class='note'>{left} more machines are not drawn; these had the most alerts.</p>")
    parts.append(f"<h3>Alerts ({len(episodes)})</h3>" + _alerts(episodes))
    for receipt in section.recording.receipts:
        parts.append(f"<h3>Receipt of a command: {html.escape(str(receipt['verb']))}</h3>")
        parts.append(f"<pre>{html.escape(json.dumps(receipt, indent=2))}</pre>")
    if section.topology_text:
        parts.append(f"<h3>The topology</h3><pre>{html.escape(section.topology_text)}</pre>")
    return "\n".join(parts)


def _figure(
    recording: Recording,
    series: Series,
    rows: NDArray[np.int64],
    labels: NDArray[np.bool_] | None,
    episodes: Sequence[Episode],
    machine: str,
) -> str:
    """One machine: its sensors, then each detector's score with threshold, alerts, labels and swaps."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    detectors = list(series.scores)
    titles = [f"{machine}: sensors", *(f"score of {name}" for name in detectors)]
    heights = [1.3] + [1.0] * len(detectors)
    figure = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=titles,
        row_heights=heights,
    )
    times = pd.to_datetime(series.times[rows], unit="s")
    shown, scaled = _on_one_axis(series.values[rows, :_MOST_SENSORS])
    for j, sensor in enumerate(recording.sensors[:_MOST_SENSORS]):
        keep = _thin(series.values[rows, j])
        line = go.Scatter(
            x=times[keep], y=shown[keep, j], name=html.escape(sensor), mode="lines", line={"width": 1}
        )
        line.update(customdata=series.values[rows, j][keep], hovertemplate="%{x}<br>%{customdata:.5g}")
        figure.add_trace(line, row=1, col=1)
    if scaled:
        figure.layout.annotations[0].text = f"{machine}: sensors, each on its own scale (hover for values)"
    spans = [] if labels is None else _spans(labels)
    marked = False
    for number, name in enumerate(detectors, start=2):
        first = number == 2
        score, limit = series.scores[name][rows], series.thresholds[name][rows]
        limit = np.where(np.isinf(limit), np.nan, limit)  # not scored there
        keep = _thin(score)
        trace = go.Scatter(
            x=times[keep], y=score[keep], name="score", mode="lines", line={"width": 1, "color": "#1f77b4"}
        )
        figure.add_trace(trace.update(legendgroup="score", showlegend=first), row=number, col=1)
        if labels is not None and len(spans) > _MOST_SPANS:
            _dots(figure, number, times, score, labels, show=first)
        ends = np.unique(
            np.r_[0, np.flatnonzero(np.diff(limit)), np.flatnonzero(np.diff(limit)) + 1, len(limit) - 1]
        )
        threshold = go.Scatter(
            x=times[ends],
            y=limit[ends],
            name="threshold",
            mode="lines",
            legendgroup="threshold",
            showlegend=first,
        )
        threshold.update(line={"dash": "dash", "width": 1.5, "color": _COLOURS["threshold"]})
        figure.add_trace(threshold, row=number, col=1)
        own = [episode for episode in episodes if episode.opened.detector == name]
        _alert_marks(figure, number, own, show=not marked)
        marked = marked or bool(own)
        if len(score) and score.max() > _LOG_FROM * max(float(limit.max()), 1e-12):
            figure.update_yaxes(type="log", row=number, col=1)
    if 0 < len(spans) <= _MOST_SPANS:
        for start, stop in spans:
            figure.add_vrect(
                x0=times[start],
                x1=times[stop - 1],
                fillcolor=_COLOURS["label"],
                line_width=0,
                row="all",
                col=1,
            )
    _swap_marks(figure, recording, series, rows)
    figure.update_layout(
        height=230 * len(titles) + 60,
        margin={"l": 50, "r": 20, "t": 40, "b": 60},
        template="plotly_white",
        legend={"orientation": "h", "y": -0.06},
        hovermode="closest",
    )
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f"<div class='figure'>{text}</div>"


def _dots(
    figure: Any, number: int, times: pd.DatetimeIndex, score: Floats, labels: NDArray[np.bool_], *, show: bool
) -> None:
    import plotly.graph_objects as go

    marked = np.flatnonzero(labels)
    marked = marked[:: max(1, len(marked) // _MOST_POINTS)]
    dots = go.Scatter(x=times[marked], y=score[marked], name="labelled anomalous", mode="markers")
    dots.update(marker={"size": 3, "color": "orange"}, legendgroup="label", showlegend=show)
    figure.add_trace(dots, row=number, col=1)


def _alert_marks(figure: Any, number: int, episodes: Sequence[Episode], *, show: bool) -> None:
    import plotly.graph_objects as go

    if len(episodes) <= _MOST_SPANS:
        for episode in episodes:
            ends = [
                pd.Timestamp(t).tz_localize(None) for t in (episode.opened.first_seen, episode.last.last_seen)
            ]
            figure.add_vrect(
                x0=ends[0], x1=ends[1], fillcolor=_COLOURS["open"], line_width=0, row=number, col=1
            )
    shown = episodes[:: max(1, len(episodes) // _MOST_POINTS)]
    marks = go.Scatter(
        x=[pd.Timestamp(e.opened.time).tz_localize(None) for e in shown],
        y=[e.opened.score for e in shown],
        text=[f"{e.opened.severity}: {e.opened.reason}" for e in shown],
        hovertemplate="%{text}<extra>alert opened</extra>",
        name="alert opened",
        mode="markers",
    )
    size = 9 if len(shown) < 200 else 4
    marks.update(marker={"symbol": "triangle-down", "size": size, "color": _COLOURS["alert"]})
    marks.update(legendgroup="alert", showlegend=show and bool(shown))
    figure.add_trace(marks, row=number, col=1)


def _swap_marks(figure: Any, recording: Recording, series: Series, rows: NDArray[np.int64]) -> None:
    for receipt in recording.receipts:
        if receipt["status"] != "applied" or "partitions" not in receipt:
            continue
        after = rows[series.offsets[rows] >= receipt["partitions"]["0"]["first_offset"]]
        if len(after):
            at = pd.to_datetime(series.times[after[0]], unit="s")
            figure.add_vline(
                x=at, line={"color": _COLOURS["swap"], "width": 2, "dash": "dot"}, row="all", col=1
            )
            text = f"swap to v{receipt['model']['version']}"
            figure.add_annotation(
                x=at, y=1, yref="y domain", text=text, showarrow=False, xanchor="left", row=1, col=1
            )


def _on_one_axis(values: Floats) -> tuple[Floats, bool]:
    """Sensors as they are; or each between its own 1st and 99th percentile, where one would hide another."""
    low, high = np.nanpercentile(values, [1, 99], axis=0)
    reach = np.nanmax(high) - np.nanmin(low)
    if np.nanmin(high - low) * _HIDDEN_BELOW > reach or values.shape[1] == 1:
        return values, False
    return (values - low) / np.where(high > low, high - low, 1.0), True


def _machines_shown(series: Series, episodes: Sequence[Episode]) -> list[str]:
    machines = list(dict.fromkeys(series.machines.tolist()))
    count = dict.fromkeys(machines, 0)
    for episode in episodes:
        count[episode.opened.machine] += 1
    return sorted(machines, key=lambda machine: -count[machine])[:_MOST_MACHINES]


def _thin(values: Floats) -> NDArray[np.int64]:
    """Row indices to draw: all, or the lowest and highest of each of equal stretches, so no peak is lost."""
    n = len(values)
    if n <= _MOST_POINTS:
        return np.arange(n)
    edges = np.linspace(0, n, _MOST_POINTS // 2 + 1).astype(int)
    filled = np.where(np.isnan(values), -np.inf, values)
    keep = {0, n - 1}
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        keep |= {start + int(np.argmin(filled[start:stop])), start + int(np.argmax(filled[start:stop]))}
    return np.array(sorted(keep))


def _spans(labels: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.r_[False, labels, False].astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _cards(cards: Mapping[str, str]) -> str:
    items = (
        f"<div class='card'><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>"
        for k, v in cards.items()
    )
    return f"<div class='cards'>{''.join(items)}</div>"


def _alerts(episodes: Sequence[Episode]) -> str:
    if not episodes:
        return "<p class='note'>None: no score reached its threshold.</p>"
    worst = sorted(episodes, key=lambda e: -e.last.peak_score / max(e.last.threshold, 1e-12))[:_MOST_ALERTS]
    rows = [
        {
            "opened": e.opened.time[:19].replace("T", " "),
            "closed": e.closed.time[:19].replace("T", " ") if e.closed else "still open",
            "machine": e.opened.machine,
            "detector": f"{e.opened.detector} ({e.opened.model.name} {e.opened.model.version})",
            "type": e.opened.type,
            "severity": e.last.severity,
            "peak / threshold": f"{e.last.peak_score:.3g} / {e.last.threshold:.3g}",
            "readings": str(e.last.anomalous_readings),
            "reason": e.opened.reason,
        }
        for e in sorted(worst, key=lambda e: e.opened.time)
    ]
    note = (
        f"<p class='note'>The {_MOST_ALERTS} highest above their threshold.</p>"
        if len(episodes) > len(rows)
        else ""
    )
    return note + _table(rows)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    lines = []
    for row in rows:
        severity = html.escape(row.get("severity", ""))
        cells = "".join(
            f"<td class='{severity if k == 'severity' else ''}'>{html.escape(v)}</td>" for k, v in row.items()
        )
        lines.append(f"<tr>{cells}</tr>")
    return f"<div class='table'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
