"""One random cut tree in arrays: where a point would go, putting it there, taking one out.

Leaves are numbered by their point, inner nodes from the number of points on. An inner node has its children
(left: value <= cut), the number of leaves below, and the axis and value of its cut; an axis of -1 says that all
points below are copies of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Slots
from detectors.draws import uniform
from detectors.kernels import compiled

__all__ = ["Nodes", "insert", "place", "remove"]

Nodes = NDArray[np.int16]


@compiled("int64(int64, int16[:,::1], int64, int64[::1], float64[:,::1], float64[::1], float64[::1])")
def _box(
    node: int,
    children: Nodes,
    places: int,
    stack: Slots,
    points: Floats,
    low: Floats,
    high: Floats,
) -> int:
    """Bounding box of the readings below a node; leaves are numbered by their point, inner nodes from `places`."""
    low[:] = np.inf
    high[:] = -np.inf
    stack[0] = node
    height, leaves = 1, 0
    while height:
        height -= 1
        current = stack[height]
        if current >= places:
            stack[height] = children[current - places, 0]
            stack[height + 1] = children[current - places, 1]
            height += 2
            continue
        leaves += 1
        for j in range(len(low)):
            low[j] = min(low[j], points[current, j])
            high[j] = max(high[j], points[current, j])
    return leaves


@compiled(
    "UniTuple(float64, 3)(float64[::1], float64[:,::1], int64, int16[:,::1], int16[::1], int16[::1], float64[::1],"
    " float64[::1], int64, int64, int64, int64[::1], float64[::1], float64[::1], float64[::1])"
)
def place(
    point: Floats,
    points: Floats,
    root: int,
    children: Nodes,
    size: Nodes,
    axis: Nodes,
    cut: Floats,
    weights: Floats,
    seed: int,
    seen: int,
    tree: int,
    stack: Slots,
    low: Floats,
    high: Floats,
    displaced: Floats,
) -> tuple[float, float, float]:
    """Where a point would be inserted: the node that becomes its sibling, and axis and cut of their parent.

    `displaced` (n_axes,) becomes the largest displacement at a cut of each axis. Axis -1: the node holds
    nothing but copies of the point.
    """
    places = len(axis)
    displaced[:] = 0.0
    node, depth = root, 0
    while True:
        leaves = _box(node, children, places, stack, points, low, high)
        total = 0.0
        for j in range(len(point)):
            total += (max(high[j], point[j]) - min(low[j], point[j])) * weights[j]
        if total <= 0.0:
            return float(node), -1.0, 0.0
        drawn = uniform(seed, seen, tree * 8192 + depth) * total
        chosen, position = -1, 0.0
        for j in range(len(point)):
            side = (max(high[j], point[j]) - min(low[j], point[j])) * weights[j]
            if side > 0.0:
                chosen = j
                position = min(low[j], point[j]) + min(drawn, side) / weights[j]
                if drawn < side:
                    break
                drawn -= side
        inner = node - places
        alone = inner < 0 or axis[inner] < 0  # one reading, or copies of one: it can only be split off
        below = point[chosen] < low[chosen] and (position < low[chosen] or alone)
        above = point[chosen] > high[chosen] and (position >= high[chosen] or alone)
        if below or above:
            if below and not point[chosen] <= position < low[chosen]:
                position = point[chosen]
            if above and not high[chosen] <= position < point[chosen]:
                position = high[chosen]
            displaced[chosen] = max(displaced[chosen], float(leaves))
            return float(node), float(chosen), position
        right = 1 if point[axis[inner]] > cut[inner] else 0
        sibling, own = children[inner, 1 - right], children[inner, right]
        n_sibling = size[sibling - places] if sibling >= places else 1
        n_own = size[own - places] if own >= places else 1
        displaced[axis[inner]] = max(displaced[axis[inner]], n_sibling / (n_own + 1.0))
        node = own
        depth += 1


@compiled(
    "void(int64, int64, int64, int64, int64, float64, int16[::1], int16[:,::1], int16[::1], int16[::1], int16[::1],"
    " float64[::1], float64)"
)
def insert(
    tree: int,
    leaf: int,
    inner: int,
    sibling: int,
    chosen: int,
    position: float,
    root: Nodes,
    children: Nodes,
    parent: Nodes,
    size: Nodes,
    axis: Nodes,
    cut: Floats,
    value: float,
) -> None:
    """Put a leaf beside its sibling, under a new inner node."""
    places = len(axis)
    above = parent[sibling]
    node = inner + places
    right = 1 if chosen >= 0 and value > position else 0
    children[inner, right] = leaf
    children[inner, 1 - right] = sibling
    axis[inner] = chosen
    cut[inner] = position
    size[inner] = 1 + (size[sibling - places] if sibling >= places else 1)
    parent[leaf] = parent[sibling] = node
    parent[node] = above
    if above < 0:
        root[tree] = node
        return
    children[above - places, 1 if children[above - places, 1] == sibling else 0] = node
    while above >= 0:
        size[above - places] += 1
        above = parent[above]


@compiled("int64(int64, int64, int16[::1], int16[:,::1], int16[::1], int16[::1])")
def remove(tree: int, leaf: int, root: Nodes, children: Nodes, parent: Nodes, size: Nodes) -> int:
    """Take a leaf out; its sibling takes the place of their parent, whose number is given back."""
    places = len(size)
    node = parent[leaf]
    inner = node - places
    sibling = children[inner, 0] if children[inner, 1] == leaf else children[inner, 1]
    above = parent[node]
    parent[sibling] = above
    if above < 0:
        root[tree] = sibling
        return int(inner)
    children[above - places, 1 if children[above - places, 1] == node else 0] = sibling
    while above >= 0:
        size[above - places] -= 1
        above = parent[above]
    return int(inner)
