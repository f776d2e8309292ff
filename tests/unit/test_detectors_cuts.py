"""Random cut forest online: trees that stay trees, displacements that agree with forests built from scratch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detectors.base import Floats, Rows
from detectors.cuts import RandomCutForest, RandomCutForestModel
from detectors.quality import roc_auc


def _feed(model: RandomCutForestModel, values: Floats) -> Floats:
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64)
    )


def _naive_displacement(points: Floats, rng: np.random.Generator) -> float:
    """Collusive displacement of the last point in one random cut tree of all points, built from scratch."""
    members, most = np.arange(len(points)), 0.0
    sizes: list[tuple[int, int]] = []
    while len(members) > 1:
        low, high = points[members].min(axis=0), points[members].max(axis=0)
        if not (high - low).any():
            break
        axis = rng.choice(points.shape[1], p=(high - low) / (high - low).sum())
        left = points[members, axis] <= rng.uniform(low[axis], high[axis])
        own = left == left[-1]  # the last point is the last member
        sizes.append((int((~own).sum()), int(own.sum())))
        members = members[own]
    for others, own_size in sizes:
        most = max(most, others / own_size)
    return most


def _below(state: Rows, tree: int, node: int) -> list[int]:
    """Points below a node; asserts that sizes, parents and cuts are as they must be."""
    places = state["points"].shape[1]
    if node < places:
        return [node]
    inner = node - places
    sides = [_below(state, tree, int(child)) for child in state["children"][0, tree, inner]]
    assert state["size"][0, tree, inner] == len(sides[0]) + len(sides[1])
    assert (state["parent"][0, tree, state["children"][0, tree, inner]] == node).all()
    axis, points = state["axis"][0, tree, inner], state["points"][0]
    if axis < 0:
        assert (points[sides[0] + sides[1]] == points[sides[0][0]]).all()
    else:
        assert points[sides[0], axis].max() <= state["cut"][0, tree, inner] < points[sides[1], axis].min()
    return sides[0] + sides[1]


def test_trees_stay_trees_of_the_latest_readings_even_with_copies() -> None:
    rng = np.random.default_rng(0)
    model = RandomCutForest(n_trees=6, tree_size=12).build(("x", "y"))
    for n in range(120):
        _feed(
            model, rng.integers(0, 3, (1, 2)).astype(np.float64) if n % 40 < 30 else rng.normal(size=(1, 2))
        )
        state = model.snapshot(np.array([0]))
        wanted = sorted(i % 13 for i in range(max(0, n - 11), n + 1))
        for tree in range(6):
            root = int(state["root"][0, tree])
            assert state["parent"][0, tree, root] == -1
            assert sorted(_below(state, tree, root)) == wanted


@pytest.mark.parametrize("last", [[0.0, 0.0], [2.5, 0.0], [8.0, -8.0]], ids=["inside", "edge", "outside"])
def test_displacement_is_that_of_forests_built_from_scratch(last: list[float]) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(33, 2))
    values[32] = last
    model = RandomCutForest(n_trees=500, tree_size=32).build(("x", "y"))
    _feed(model, values[:32])
    scaled = values / np.sqrt(model.snapshot(np.array([0]))["variance"][0])
    score = _feed(model, values[32:])[0]
    naive = [_naive_displacement(scaled, rng) / 32 for _ in range(2000)]
    error = 4 * float(np.std(naive)) * math.sqrt(1 / 500 + 1 / 2000)
    assert score == pytest.approx(np.mean(naive), abs=error)


def test_displacement_agrees_after_many_insertions_and_removals() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(301, 2))
    values[300] = [3.0, 1.0]
    model = RandomCutForest(n_trees=500, tree_size=32).build(("x", "y"))
    _feed(model, values[:300])
    scaled = values[268:] / np.sqrt(model.snapshot(np.array([0]))["variance"][0])
    score = _feed(model, values[300:])[0]
    naive = [_naive_displacement(scaled, rng) / 32 for _ in range(2000)]
    error = 5 * float(np.std(naive)) * math.sqrt(1 / 500 + 1 / 2000)
    assert score == pytest.approx(np.mean(naive), abs=error)


def test_far_readings_score_high_and_their_sensor_has_the_share() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2000, 3)) * [1.0, 100.0, 0.01]
    faults = np.arange(200, 2000, 90)
    values[faults, 1] -= 1200.0
    model = RandomCutForest().build(("a", "b", "c"))
    scores = _feed(model, values)
    labels = np.isin(np.arange(2000), faults)
    assert roc_auc(labels[64:], scores[64:]) > 0.995
    shares, expected = model.contributions(faults)
    assert (shares.argmin(axis=1) == 1).all()
    assert (shares[:, 1] < -0.5).mean() > 0.9
    assert np.abs(expected[:, 1]).max() < 150


def test_shingles_show_a_jump_between_values_that_are_each_normal() -> None:
    wave = np.sin(2 * np.pi * np.arange(1200) / 40) + 0.02 * np.random.default_rng(0).normal(size=1200)
    jumps = np.array([410, 650, 890, 1130])
    wave[jumps] *= -0.9  # from the peak to a value near the trough, for one reading
    labels = np.isin(np.arange(1200), jumps)
    auc = {}
    for shingle in (1, 4):
        scores = _feed(RandomCutForest(tree_size=120, shingle=shingle).build(("x",)), wave)
        auc[shingle] = roc_auc(labels[200:], scores[200:])
    assert auc[4] > 0.99
    assert auc[4] > auc[1] + 0.1


def test_nodes_outside_of_the_trees_are_refused() -> None:
    model = RandomCutForest().build(("x",))
    _feed(model, np.arange(100.0))
    state = dict(model.snapshot(np.array([0])))
    for name, value in (("children", 999), ("root", -5), ("axis", 7)):
        with pytest.raises(ValueError, match="outside"):
            model.restore(np.array([0]), {**state, name: np.full_like(state[name], value)})
