"""State arrays as one record of bytes a machine, and back: the inside of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows

__all__ = ["Layout", "pack", "unpack"]

Layout = list[list[Any]]
"""What a record holds, in order: [table, array, dtype, shape of a row]."""


def pack(components: Mapping[str, Rows], n: int) -> tuple[Layout, list[bytes]]:
    """The layout and the records of n machines.

    Arrays of fixed size come first, side by side; arrays of `bytes` follow, each with its length before it.
    """
    layout: Layout = []
    fixed: list[NDArray[np.uint8]] = []
    loose: list[tuple[list[Any], list[bytes]]] = []
    for component, arrays in sorted(components.items()):
        for name, array in sorted(arrays.items()):
            if array.dtype == object:
                loose.append(([component, name, "bytes", []], array.tolist()))
                continue
            layout.append([component, name, array.dtype.str, list(array.shape[1:])])
            width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
            fixed.append(np.ascontiguousarray(array).view(np.uint8).reshape(n, width))
    matrix = np.hstack(fixed) if fixed else np.zeros((n, 0), np.uint8)
    width = matrix.shape[1]
    data = matrix.tobytes()
    rows = [data[i * width : (i + 1) * width] for i in range(n)]
    for entry, blobs in loose:
        layout.append(entry)
        rows = [row + len(blob).to_bytes(4, "little") + blob for row, blob in zip(rows, blobs, strict=True)]
    return layout, rows


def unpack(layout: Sequence[Sequence[Any]], rows: Sequence[bytes]) -> dict[str, dict[str, Any]]:
    """The inverse of `pack`: arrays by table and name, first axis the machines. Raises ValueError."""
    found: dict[str, dict[str, Any]] = {}
    if not rows:
        return found
    places = [0] * len(rows)
    for component, name, dtype, shape in layout:
        if dtype == "bytes":
            blobs = np.empty(len(rows), dtype=object)
            for i, row in enumerate(rows):
                start = places[i] + 4
                places[i] = start + int.from_bytes(row[start - 4 : start], "little")
                blobs[i] = row[start : places[i]]
            found.setdefault(component, {})[name] = blobs
            continue
        width = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        data = b"".join(row[place : place + width] for row, place in zip(rows, places, strict=True))
        found.setdefault(component, {})[name] = np.frombuffer(data, dtype).reshape(len(rows), *shape).copy()
        places = [place + width for place in places]
    if places != [len(row) for row in rows]:
        raise ValueError("rows do not fit their layout")
    return found
