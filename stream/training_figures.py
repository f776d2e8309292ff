"""Figures of a training, as small PNG files: what the registry shows beside a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detectors.base import Floats

__all__ = ["training_figures"]

_POINTS = 2000
"""Places along the time axis; each shows the largest of its rows, so that no peak is lost."""
_BINS = 60
_INPUTS = 30


def training_figures(
    inputs: Sequence[str], values: Floats, scores: Floats, threshold: float, shares: Floats
) -> Mapping[str, bytes]:
    """Files by name: the distribution of the scores (n,), the training data (n, n_inputs) with scores and threshold
    in the order of the rows, and the mean contributions (n_inputs,) where scores are highest."""
    names = list(inputs)
    return {
        "scores.png": _drawn(lambda axes: _scores(axes, scores, threshold)),
        "training_data.png": _drawn(
            lambda above, below: _data(above, below, names, values, scores, threshold), rows=2
        ),
        "contributions.png": _drawn(lambda axes: _contributions(axes, names, shares)),
    }


def _scores(axes: Axes, scores: Floats, threshold: float) -> None:
    axes.hist(scores, bins=_BINS, log=True, color="#4c78a8")
    axes.axvline(threshold, color="#d62728", label=f"threshold {threshold:.4g}")
    axes.set(title="Scores of the training data", xlabel="score", ylabel="rows")
    axes.legend()


def _data(
    above: Axes, below: Axes, names: list[str], values: Floats, scores: Floats, threshold: float
) -> None:
    rows, tops = _thinned(scores)
    for j, name in enumerate(names[:_INPUTS]):
        column = values[rows, j]
        spread = np.nanstd(values[:, j])
        above.plot(rows, (column - np.nanmean(values[:, j])) / (spread or 1.0), linewidth=0.6, label=name)
    above.set(title="Training data, in standard deviations from the mean")
    above.legend(fontsize=6, ncols=4)
    below.plot(rows, tops, linewidth=0.6, color="#4c78a8")
    below.axhline(threshold, color="#d62728", label=f"threshold {threshold:.4g}")
    below.set(xlabel="row", ylabel="score")
    below.legend(fontsize=8)


def _contributions(axes: Axes, names: list[str], shares: Floats) -> None:
    order = np.argsort(np.abs(shares), kind="stable")[-_INPUTS:]
    axes.barh([names[i] for i in order.tolist()], np.abs(shares[order]), color="#4c78a8")
    axes.set(title="Mean contribution to the highest scores", xlabel="share")


def _thinned(scores: Floats) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Floats]:
    """Rows (k,) and scores (k,): of each run of rows the one with the highest score."""
    runs = np.array_split(np.arange(len(scores)), min(_POINTS, len(scores)))
    rows = np.array([run[np.argmax(scores[run])] for run in runs], np.int64)
    return rows, scores[rows]


def _drawn(draw: Callable[..., None], rows: int = 1) -> bytes:
    figure = Figure(figsize=(9, 3 + 2 * rows), layout="constrained")
    draw(*figure.subplots(rows, squeeze=False).ravel())
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()
