"""How the log-probabilities of several detectors become one, of those that have something to say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from stream.rules import Combination

__all__ = ["combined", "improbability"]

_LARGEST = 30.0
_LEAST = 1e-300


def combined(votes: Floats, rule: Combination, weights: Floats) -> Floats:
    """One score (n,) of votes (n_detectors, n), NaN where a detector abstains; NaN where nobody votes, or none with
    a weight.

    The mean is of those that vote, by their `weights` (n_detectors,); of fewer than k votes the lowest counts.

    >>> votes = np.array([[1.0, np.nan, np.nan], [3.0, 3.0, np.nan], [4.0, 4.0, np.nan]])
    >>> combined(votes, Combination(), np.array([2.0, 1.0, 1.0])).tolist()
    [2.25, 3.5, nan]
    >>> combined(votes, Combination(method="k_of_n", k=3), np.ones(3)).tolist()
    [1.0, 3.0, nan]
    """
    voting = np.isfinite(votes)
    if rule.method != "mean":
        ordered = np.sort(np.where(voting, votes, -np.inf), axis=0)
        place = np.clip(_taken(rule, voting), 1, len(votes))
        found = np.take_along_axis(ordered, len(votes) - place[np.newaxis], axis=0)[0]
        return np.where(voting.any(axis=0), found, np.nan)
    total, weight = np.zeros(votes.shape[1]), np.zeros(votes.shape[1])
    for share, vote, given in zip(
        weights.tolist(), votes, voting, strict=True
    ):  # one order of adding, at any size
        total += np.where(given, share * vote, 0.0)
        weight += np.where(given, share, 0.0)
    return np.where(weight > 0.0, total / np.maximum(weight, 1e-12), np.nan)


def improbability(scores: Floats, votes: Floats, rule: Combination, weights: Floats) -> Floats:
    """-log10 of the probability (n,) that `combined` gives as much as these scores (n,) where nothing is wrong, if
    each vote is the log-probability that it says and none has to do with another.

    A mean is gamma distributed (of weights that differ nearly so, with the same mean and variance: Satterthwaite,
    Biometrics Bulletin 1946); so many votes from a score on are binomial. Needs somebody to vote.

    >>> votes = np.array([[2.0, 2.0], [np.nan, 2.0]])
    >>> improbability(np.array([2.0, 2.0]), votes, Combination(), np.ones(2)).round(2).tolist()
    [2.0, 2.99]
    >>> improbability(np.array([2.0, 2.0]), votes, Combination(method="max"), np.ones(2)).round(2).tolist()
    [2.0, 1.7]
    """
    from scipy import special  # a tenth of a second, for those who need it

    voting = np.isfinite(votes)
    if rule.method == "mean":
        weighs = np.where(voting, weights[:, np.newaxis], 0.0)
        alike = np.maximum(weighs.sum(axis=0) ** 2, 1e-12) / np.maximum((weighs**2).sum(axis=0), 1e-12)
        chance = special.gammaincc(alike, alike * np.log(10.0) * scores)
    else:
        taken, count = _taken(rule, voting), voting.sum(axis=0)
        chance = special.betainc(taken, count - taken + 1.0, 10.0**-scores)
    found: Floats = np.minimum(-np.log10(np.maximum(chance, _LEAST)), _LARGEST)
    return found


def _taken(rule: Combination, voting: Mask) -> NDArray[np.int64]:
    """Which vote counts, from the highest on."""
    k = 1 if rule.method == "max" else rule.k
    found: NDArray[np.int64] = np.minimum(k, voting.sum(axis=0))
    return found
