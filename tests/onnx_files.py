"""ONNX files such as other libraries export: in single precision, for any number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["model", "rebuilds", "scores"]


def model(
    nodes: list[Any],
    weights: dict[str, Any],
    *,
    n: Any = 3,
    rows: Any = "n",
    gives: Any = ("n", 3),
    domains: tuple[str, ...] = ("",),
    kind: Any = TensorProto.FLOAT,
) -> Any:
    """A model from `x` (rows, n) to `y` with these operators and weights."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [rows, n])],
        [helper.make_tensor_value_info("y", kind, list(gives))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid(domain, {"": 17, "ai.onnx.ml": 3}.get(domain, 1)) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def rebuilds(n: int = 3, seed: int = 0) -> Any:
    """Keeps two directions of the readings, by a Gemm and a MatMul."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, min(2, n))))
    weights = {
        "w": axes.astype(np.float32),
        "v": axes.T.astype(np.float32),
        "b": np.zeros(axes.shape[1], np.float32),
    }
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    return model(nodes, weights, n=n, gives=("n", n))


def scores(n: int = 3) -> Any:
    """Minus the sum of distances from 0, 1, 2, …: low is anomalous, as scikit-learn has it."""
    nodes = [
        helper.make_node("Sub", ["x", "c"], ["d"]),
        helper.make_node("Abs", ["d"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["s"], keepdims=1),
        helper.make_node("Neg", ["s"], ["y"]),
    ]
    weights = {"c": np.arange(n, dtype=np.float32), "axis": np.array([1], np.int64)}
    found = model(nodes, weights, n=n, gives=("n", 1))
    onnx.checker.check_model(found, full_check=True)
    return found
