"""Isolation forest: readings that random splits isolate quickly score high; trained before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import checked, made, training_matrix
from detectors.kernels import compiled, floats

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["IsolationForest", "IsolationForestModel"]

_LARGEST_VALUE = float(np.finfo(np.float32).max)
"""scikit-learn's trees compare in single precision."""
_EULER_GAMMA = 0.5772156649015329


class IsolationForest(TrainableDetector, frozen=True, kw_only=True):
    """Scores a reading by how few random splits isolate it, 0 to 1, about 0.5 for an ordinary one.

    Liu, Ting and Zhou, "Isolation Forest", ICDM 2008. Trained by scikit-learn; scores equal its
    `-score_samples` to 1e-9. A missing sensor is taken to be at its training median. Fails on anomalies that
    are dense in the training data, on irrelevant sensors in number, and outside the training range all
    values look alike: twice as far does not score higher.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"x": np.sin(np.arange(500.0)), "y": np.cos(np.arange(500.0))})
    >>> model = IsolationForest.load(IsolationForest().fit(frame))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[0.0, 1.0], [5.0, 5.0]]), np.zeros(2)).round(1)
    array([0.5, 0.6])
    """

    kind: ClassVar[str] = "isolation_forest"

    n_trees: Annotated[int, Meta(ge=1, le=2000)] = 100
    max_samples: Annotated[int, Meta(ge=2)] = 256
    """Rows that each tree is grown from."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on at least 20 complete rows. Raises ValueError if there are fewer."""
        from sklearn import ensemble  # takes a second, which only training needs to pay

        sensors, matrix = training_matrix(frame, 20)
        forest = ensemble.IsolationForest(
            n_estimators=self.n_trees, max_samples=min(self.max_samples, len(matrix)), random_state=self.seed
        )
        matrix = np.clip(matrix, -_LARGEST_VALUE, _LARGEST_VALUE)
        forest.fit(matrix)
        arrays = _flatten([estimator.tree_ for estimator in forest.estimators_])
        arrays["median"] = np.median(matrix, axis=0)
        arrays["normal_depth"] = np.array([_average_depth(np.array([forest.max_samples_]))[0]])
        model = self.load(made(self, sensors, 1.0, arrays))
        scores = model.score_learn(np.zeros(len(matrix), np.int64), matrix, np.zeros(len(matrix)))
        # Just above the quantile: where many training rows tie there, as on flat lines, they are normal.
        return made(self, sensors, float(np.quantile(scores, self.quantile)) + 1e-9, arrays)

    @classmethod
    def load(cls, weights: Weights) -> IsolationForestModel:
        """The model of these weights. Raises ValueError where a tree is not one: ranges, order, cycles."""
        return IsolationForestModel(weights)


class IsolationForestModel:
    """The trees, flat; no state per key."""

    def __init__(self, weights: Weights) -> None:
        nodes, width = (None,), (len(weights.sensors),)
        arrays = checked(
            weights,
            IsolationForest.kind,
            {
                "roots": (None,),
                "feature": nodes,
                "split": nodes,
                "left": nodes,
                "right": nodes,
                "depth": nodes,
                "median": width,
                "normal_depth": (1,),
            },
        )
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._median, self._normal_depth = arrays["median"], float(arrays["normal_depth"][0])
        self._roots, self._feature, self._left, self._right = (
            arrays[name].astype(np.int64) for name in ("roots", "feature", "left", "right")
        )
        self._split, self._depth = arrays["split"], arrays["depth"]
        self._verify()
        self._values: Floats = np.zeros((0, len(self.sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in 0 to 1; nothing is learned. See `Model`. About 5 µs per reading."""
        finite = np.where(np.isnan(values), self._median, values)
        finite = np.where(np.isinf(values), self._median, finite)
        self._values = floats(np.clip(finite, -_LARGEST_VALUE, _LARGEST_VALUE).astype(np.float32))
        depths, gains = np.zeros(len(values)), np.zeros((0, values.shape[1]))
        self._walk(self._values, depths, gains)
        scores: Floats = 2.0 ** (-depths / (len(self._roots) * self._normal_depth))
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by the depth that splits on a sensor saved against the average; expected is the median.

        The path is decomposed split by split (Saabas 2014; of DIFFI, Carletti et al. 2023, the idea that
        what isolates early matters): each split is credited with the fall of the expected depth.
        """
        values = floats(self._values[rows])
        gains = np.zeros(values.shape)
        self._walk(values, np.zeros(len(values)), gains)
        gains = np.maximum(gains, 0.0)
        total = gains.sum(axis=1, keepdims=True)
        side = np.where(values >= self._median, 1.0, -1.0)
        expected = np.broadcast_to(self._median, values.shape).copy()
        return Contributions(side * gains / np.where(total > 0, total, 1.0), expected)

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing: the model has no state per key."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Raises ValueError if there is any state to put back."""
        if rows:
            raise ValueError(f"state has {sorted(rows)}, expected none")

    def _walk(self, values: Floats, depths: Floats, gains: Floats) -> None:
        _walk(
            values,
            self._roots,
            self._feature,
            self._split,
            self._left,
            self._right,
            self._depth,
            depths,
            gains,
        )

    def _verify(self) -> None:
        """Children lie after their parent and within its tree, so that every walk ends."""
        size, roots = len(self._feature), self._roots
        if (
            not len(roots)
            or len({len(a) for a in (self._feature, self._split, self._left, self._right, self._depth)}) != 1
        ):
            raise ValueError("weights: a forest needs trees, and node arrays of one length")
        ends = np.append(roots[1:], size)
        if roots[0] != 0 or (ends <= roots).any():
            raise ValueError("weights: roots must begin at 0, ascend and lie within the nodes")
        own_end = np.repeat(ends, ends - roots)
        node, inner = np.arange(size), self._feature >= 0
        if (self._feature >= len(self.sensors)).any():
            raise ValueError("weights: a tree splits on a sensor that does not exist")
        for child in (self._left, self._right):
            if ((child <= node) | (child >= own_end))[inner].any():
                raise ValueError("weights: a tree's child does not lie after its parent, within the tree")
        if (self._depth < 0).any() or self._normal_depth <= 0:
            raise ValueError("weights: depths must be positive")


def _flatten(trees: list[Any]) -> dict[str, NDArray[Any]]:
    """All trees' nodes in a row; `depth` is the mean path length of the training rows that reach a node."""
    offsets = np.cumsum([0, *[tree.node_count for tree in trees]])
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("feature", "split", "left", "right", "depth")
    }
    for tree, offset in zip(trees, offsets[:-1], strict=True):
        leaf = tree.children_left < 0
        parts["feature"].append(np.where(leaf, -1, tree.feature).astype(np.int32))
        parts["split"].append(np.where(leaf, 0.0, tree.threshold))
        parts["left"].append(np.where(leaf, -1, tree.children_left + offset).astype(np.int32))
        parts["right"].append(np.where(leaf, -1, tree.children_right + offset).astype(np.int32))
        parts["depth"].append(_mean_depths(tree, leaf))
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    return {"roots": offsets[:-1].astype(np.int32), **arrays}


def _mean_depths(tree: Any, leaf: NDArray[np.bool_]) -> Floats:
    samples = tree.n_node_samples.astype(np.float64)
    depth = np.zeros(tree.node_count)
    for i in np.flatnonzero(~leaf):
        depth[tree.children_left[i]] = depth[tree.children_right[i]] = depth[i] + 1
    depth += np.where(leaf, _average_depth(samples), 0.0)
    for i in np.flatnonzero(~leaf)[::-1]:
        children = np.array([tree.children_left[i], tree.children_right[i]])
        depth[i] = np.average(depth[children], weights=samples[children])
    return depth


def _average_depth(samples: NDArray[Any]) -> Floats:
    """Mean path length of an unsuccessful search in a binary tree of so many rows (equation 1 of the paper)."""
    n = np.maximum(np.asarray(samples, np.float64), 2.0)
    many = 2.0 * (np.log(n - 1.0) + _EULER_GAMMA) - 2.0 * (n - 1.0) / n
    return np.where(samples <= 1, 0.0, np.where(samples == 2, 1.0, many))


@compiled(
    "void(float64[:,::1], int64[::1], int64[::1], float64[::1], int64[::1], int64[::1], float64[::1],"
    " float64[::1], float64[:,::1])"
)
def _walk(
    values: Floats,
    roots: NDArray[np.int64],
    feature: NDArray[np.int64],
    split: Floats,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    depth: Floats,
    depths: Floats,
    gains: Floats,
) -> None:
    explain = gains.shape[0] > 0
    for i in range(values.shape[0]):
        for root in roots:
            node = root
            while feature[node] >= 0:
                sensor = feature[node]
                child = left[node] if values[i, sensor] <= split[node] else right[node]
                if explain:
                    gains[i, sensor] += depth[node] - depth[child]
                node = child
            depths[i] += depth[node]
