"""A model of one's own as an ONNX file, exported from PyTorch or another library; its limit from healthy rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import LARGEST_DEVIATION, LEAST_LIMIT, checked, made, spread, training_matrix
from detectors.graphs import MAX_BYTES, Graph
from detectors.kernels import floats
from detectors.occlusion import occlusion

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["ONNX", "ONNXModel", "rebuilding"]


class ONNX(TrainableDetector, frozen=True, kw_only=True):
    """Scores with a model of one's own, given as an ONNX file; training chooses only its threshold, 1.

    The graph takes readings (n, n_sensors) as they are, any scaling inside, and gives either a reconstruction (n,
    n_sensors), whose mean squared error in standard deviations of the training data is the score, or itself a score
    (n,) or (n, 1), which counts from its median on. The `quantile` of the training data scores 1. The file is read by
    training and never again: the graph is stored with the weights, as data. It is checked before it runs: standard
    operators only (ai.onnx, ai.onnx.ml), no control flow, no randomness, no weights outside. The format:
    "Open Neural Network Exchange Intermediate Representation (ONNX IR) Specification", The ONNX Project,
    https://onnx.ai/onnx/repo-docs/IR.html.

    A missing sensor counts as its mean in the training data, so a graph fails that was never shown this. Fails where
    what it was trained on differs from the rows given here, and where the graph needs earlier readings: it sees one
    at a time. About 10 µs a reading, and what the graph costs.
    """

    kind: ClassVar[str] = "onnx"

    file: str
    """The ONNX file, at most 64 MB, relative to the folder in which `mmlw train` runs."""
    gives: Literal["reconstruction", "score"] = "reconstruction"
    """What the output is."""
    anomalous: Literal["high", "low"] = "high"
    """Which end of its score is anomalous; scikit-learn's decision functions are low there."""
    output: str | None = None
    """The output that counts, where the graph has several."""

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Check the file and choose the limit by complete rows, at least 20. Raises ValueError on either."""
        sensors, matrix = training_matrix(frame, 20)
        path = Path(self.file)
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise ValueError(f"{self.file}: {size} bytes; at most {MAX_BYTES}")
            data = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise ValueError(f"{self.file}: {error.strerror or error}") from error
        center = matrix.mean(axis=0)
        arrays = {
            "graph": data,
            "center": center,
            "scale": spread(matrix, center),
            "limits": np.array([0.0, 1.0]),
        }
        plain = made(msgspec.structs.replace(self, file=path.name), sensors, 1.0, arrays)
        try:
            raw = ONNXModel(plain, self.kind).raw(matrix)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error
        base = 0.0 if self.gives == "reconstruction" else float(np.median(raw))
        least = LEAST_LIMIT if self.gives == "reconstruction" else 1e-9 * max(abs(base), 1.0)
        limits = np.array([base, max(float(np.quantile(raw, self.quantile)) - base, least)])
        return replace(plain, arrays={**arrays, "limits": limits})

    @classmethod
    def load(cls, weights: Weights) -> ONNXModel:
        """The model of these weights. Raises ValueError on shapes, numbers or a graph that do not fit."""
        return ONNXModel(weights, cls.kind)


class ONNXModel:
    """The graph in a session; no state per key."""

    def __init__(self, weights: Weights, kind: str) -> None:
        """Raises ValueError on anything but a graph of this shape, its scales and limits."""
        n, settings = len(weights.sensors), weights.settings
        rest = {name: array for name, array in weights.arrays.items() if name != "graph"}
        arrays = checked(replace(weights, arrays=rest), kind, {"center": (n,), "scale": (n,), "limits": (2,)})
        if (arrays["scale"] <= 0).any() or arrays["limits"][1] <= 0:
            raise ValueError("weights: scale and limit must be positive")
        if "graph" not in weights.arrays:
            raise ValueError("weights hold no graph")
        output = settings.get("output")
        if not isinstance(output, str | None):
            raise ValueError("weights: output is not a name")
        self._graph = Graph(np.asarray(weights.arrays["graph"]), n, output)
        self._rebuilds = settings.get("gives", "reconstruction") == "reconstruction"
        self._sign = -1.0 if settings.get("anomalous", "high") == "low" else 1.0
        shapes = [(1, n)] if self._rebuilds else [(1,), (1, 1)]
        if self._graph.shape not in shapes:
            wanted = f"a reconstruction (n, {n})" if self._rebuilds else "a score (n,) or (n, 1)"
            raise ValueError(
                f"the graph gives {self._graph.shape} for one reading, not {wanted}; see gives and output"
            )
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._center, self._scale = arrays["center"], arrays["scale"]
        self._base, self._unit = arrays["limits"].tolist()
        self._values: Floats = np.zeros((0, n))
        self._known: Mask = np.zeros((0, n), np.bool_)
        self._errors: Floats = np.zeros((0, n))
        self._expected: Floats = np.zeros((0, n))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the limit; nothing is learned. See `Model`. Some 10 µs per reading, and the graph's."""
        scores: Floats = np.maximum(self.raw(floats(values)) - self._base, 0.0) / self._unit
        return scores

    def raw(self, values: Floats) -> Floats:
        """Mean squared errors (n,) in sigmas, or what the graph says; 0 or its base without any value."""
        known = np.ones(values.shape, np.bool_)
        np.isfinite(values, out=known)
        reach = LARGEST_DEVIATION * self._scale
        filled = np.clip(np.where(known, values, self._center), self._center - reach, self._center + reach)
        self._values, self._known = filled, known
        found = self._graph(filled).reshape(len(values), math.prod(self._graph.shape))
        if not self._rebuilds:
            self._expected = np.broadcast_to(self._center, values.shape)
            scores = self._bounded(self._sign * found[:, 0])
            return np.where(known.any(axis=1), scores, self._base)
        rebuilt = np.nan_to_num(found, nan=np.inf)  # what cannot be rebuilt is as far off as can be
        deviations = np.clip((rebuilt - self._center) / self._scale, -LARGEST_DEVIATION, LARGEST_DEVIATION)
        self._errors = np.where(known, (filled - self._center) / self._scale - deviations, 0.0)
        self._expected = np.where(np.isfinite(found), found, np.nan)
        squares = (self._errors**2).sum(axis=1)
        return np.asarray(squares / np.maximum(known.sum(axis=1), 1), dtype=np.float64)

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Of a reconstruction: shares by squared error; expected is what was rebuilt.

        Of a score: by how much it falls where a sensor shows its mean of the training data, which is expected.
        """
        if not self._rebuilds:
            shares = np.array([self._occluded(i) for i in rows.tolist()]).reshape(
                len(rows), len(self.sensors)
            )
            return Contributions(shares, self._expected[rows])
        squares = self._errors[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._errors[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing: the model has no state per key."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Raises ValueError if there is any state to put back."""
        if rows:
            raise ValueError(f"state has {sorted(rows)}, expected none")

    def _occluded(self, i: int) -> Floats:
        def score(reading: Floats) -> float:
            [raw] = self._bounded(self._sign * self._graph(reading[np.newaxis]).reshape(1))
            return float(raw)

        return occlusion(score, self._values[i], self._center, self._known[i])

    def _bounded(self, scores: Floats) -> Floats:
        """What is no number is as anomalous as can be."""
        return np.clip(np.nan_to_num(scores, nan=np.inf), -1e100, 1e100)


def rebuilding(
    center: Floats, scale: Floats, bound: float, layers: list[tuple[Floats, Floats]]
) -> NDArray[np.uint8]:
    """An autoencoder as an ONNX file: standardise, bound, dense layers with tanh between them, and back.

    `layers`: matrices (n_in, n_out) and offsets (n_out,). Everything in double precision. The bytes are the same for
    the same numbers.
    """
    import onnx
    from onnx import helper, numpy_helper

    weights = {"center": center, "scale": scale, "lowest": np.array(-bound), "highest": np.array(bound)}
    nodes = [
        helper.make_node("Sub", ["reading", "center"], ["deviation"]),
        helper.make_node("Div", ["deviation", "scale"], ["sigmas"]),
        helper.make_node("Clip", ["sigmas", "lowest", "highest"], ["signal_0"]),
    ]
    for i, (matrix, offsets) in enumerate(layers):
        weights |= {f"weights_{i}": matrix, f"offsets_{i}": offsets}
        given, last = f"signal_{i}", i == len(layers) - 1
        nodes.append(helper.make_node("MatMul", [given, f"weights_{i}"], [f"product_{i}"]))
        total = "rebuilt_sigmas" if last else f"sum_{i}"
        nodes.append(helper.make_node("Add", [f"product_{i}", f"offsets_{i}"], [total]))
        if not last:
            nodes.append(helper.make_node("Tanh", [total], [f"signal_{i + 1}"]))
    nodes.append(helper.make_node("Mul", ["rebuilt_sigmas", "scale"], ["rebuilt_deviation"]))
    nodes.append(helper.make_node("Add", ["rebuilt_deviation", "center"], ["reconstruction"]))
    shape = ["n", len(center)]
    graph = helper.make_graph(
        nodes,
        "autoencoder",
        [helper.make_tensor_value_info("reading", onnx.TensorProto.DOUBLE, shape)],
        [helper.make_tensor_value_info("reconstruction", onnx.TensorProto.DOUBLE, shape)],
        [
            numpy_helper.from_array(np.ascontiguousarray(array, np.float64), name)
            for name, array in weights.items()
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="mmlw"
    )
    onnx.checker.check_model(model, full_check=True)
    return np.frombuffer(model.SerializeToString(deterministic=True), np.uint8)
