"""Figures of the accuracy benchmark with their intervals, beside the published ones: one table for each corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.published import FILES, PUBLISHED

__all__ = ["DRAWS", "HALVES", "in_halves", "table"]

DRAWS = 200
"""Bootstrap draws over files."""
_SHIPPED = "as shipped"
"""Our alerts by the thresholds of the topology; published scores choose theirs afterwards, on these files
("optimised") or on others ("held")."""
HALVES = 100
"""Random splits of the files in two, for `auto` against the tuned topology."""
_MAIN = {"nab": _SHIPPED, "skab": "F1"}
_WIDTH = 18

Files = Sequence[Mapping[str, Any]]
"""As the judge's `evaluate` takes them."""


def table(judge: ModuleType, corpus: str, ours: Mapping[str, Files], seed: int) -> Iterator[str]:
    """Lines: a row for each of our topologies, its 90 % bootstrap interval over files below it, and a row for each
    published detector. A figure that such files do not have (none is labelled) is "-"."""
    rows, columns = {}, ["files"]
    for name, files in ours.items():
        figures = figures_of(judge, corpus, files)
        intervals = _intervals(judge, corpus, files, seed)
        columns = ["files", *figures]
        rows[name] = {"files": str(len(files))} | {key: _text(value) for key, value in figures.items()}
        rows[f"{name}, 90 % interval"] = {
            key: f"{_text(low)}..{_text(high)}" for key, (low, high) in intervals.items() if np.isfinite(low)
        }
    for name, told in PUBLISHED[corpus].items():
        rows[name] = {"files": str(FILES[corpus]), **told}
    first = max(map(len, rows)) + 2
    yield f"{corpus.upper():<{first}}" + "".join(f"{column:>{_WIDTH}}" for column in columns)
    for name, row in rows.items():
        yield (f"{name:<{first}}" + "".join(f"{row.get(key, ''):>{_WIDTH}}" for key in columns)).rstrip()


def figures_of(judge: ModuleType, corpus: str, files: Files) -> dict[str, float]:
    """The judge's figures of these files by name, NaN where they have none."""
    volumes = [file["vus"] for file in _with_volumes(judge, files) if file["vus"] is not None]
    return _figures(judge, corpus, files) | {"VUS-PR": float(np.mean(volumes)) if volumes else np.nan}


def in_halves(judge: ModuleType, corpus: str, tuned: Files, automatic: Files, *, seed: int) -> str:
    """How far `auto` stays behind the tuned topology, on halves of the files drawn at random."""
    if len(tuned) < 2:
        return "auto against tuned: one file has no halves"
    rng, name, behind = np.random.default_rng(seed), _MAIN[corpus], []
    for _ in range(HALVES):
        order = rng.permutation(len(tuned))
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            one, other = (
                _figures(judge, corpus, [files[i] for i in half])[name] for files in (tuned, automatic)
            )
            behind.append(one - other)
    if not np.isfinite(behind).any():
        return "auto against tuned: no half has an event"
    worst = float(np.nanmax(behind))
    return f"auto is behind by {np.nanmedian(behind):.3f} {name} (median of {2 * HALVES} halves; at most {worst:.3f})"


def _intervals(judge: ModuleType, corpus: str, files: Files, seed: int) -> dict[str, tuple[float, float]]:
    rng, draws = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        draws.append(_figures(judge, corpus, [files[i] for i in rng.integers(0, len(files), len(files))]))
    found = {name: _middle([draw[name] for draw in draws]) for name in draws[0]}
    volumes = [file["vus"] for file in _with_volumes(judge, files) if file["vus"] is not None]
    means = [float(rng.choice(volumes, len(volumes)).mean()) for _ in range(DRAWS)] if volumes else []
    return found | {"VUS-PR": _middle(means)}


def _middle(draws: Sequence[float]) -> tuple[float, float]:
    """The middle 90 % of those that are numbers."""
    kept = np.asarray(draws)[np.isfinite(draws)]
    if not len(kept):
        return np.nan, np.nan
    low, high = np.quantile(kept, [0.05, 0.95])
    return float(low), float(high)


def _with_volumes(judge: ModuleType, files: Files) -> list[dict[str, Any]]:
    """The files with the judge's VUS-PR of each that has labels."""
    found = []
    for file in files:
        truth, score = file["y"][file["p"] :], file["score"][file["p"] :]
        found.append({**file, "vus": judge.vus_pr(truth, score) if truth.any() else None})
    return found


def _figures(judge: ModuleType, corpus: str, files: Files) -> dict[str, float]:
    with np.errstate(invalid="ignore", divide="ignore"):  # files without any event
        result: Mapping[str, Any] = judge.evaluate(corpus, [dict(file) for file in files], vus=False)
    events, figures = result["events"], {}
    if corpus == "nab":
        scores = result["nab"]
        figures = {
            _SHIPPED: scores["standard"],
            "optimised": np.nan,
            "held": np.nan,
            "low FP": scores["low_fp"],
            "low FN": scores["low_fn"],
        }
    else:
        figures = {"F1": result["F1"], "FAR %": result["FAR"], "MAR %": result["MAR"]}
        figures["changepoint"] = result["cp_nab"]["standard"] or np.nan
    figures |= {"event F1": events["event_f1"], "event recall": events["event_recall"]}
    figures |= {"false alarms": events["false_alarms"], "false a day": events["false_alarms_per_day"]}
    return {name: float(value) for name, value in figures.items()}


def _text(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
