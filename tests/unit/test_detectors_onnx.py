"""ONNX files of one's own: scores, limits and reasons by hand; and files that must not be run, nor read further."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper

from detectors import graphs
from detectors.base import Floats, Model
from detectors.graphs import Graph
from detectors.onnx import ONNX
from tests.onnx_files import model, rebuilds, scores

NAMES = ["a", "b", "c"]
FRAME = pd.DataFrame(
    np.random.default_rng(0).normal([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], (400, 3)), columns=NAMES
)


def _fit(tmp_path: Path, made: Any, frame: pd.DataFrame = FRAME, **settings: Any) -> Any:
    file = tmp_path / "model.onnx"
    file.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return ONNX(file=str(file), **settings).fit(frame)


def _score(found: Model, values: Floats) -> Floats:
    return found.score_learn(np.zeros(len(values), np.int64), values, np.zeros(len(values)))


def test_reconstruction_is_scored_by_squared_error_over_that_of_the_training_data(tmp_path: Path) -> None:
    weights = _fit(tmp_path, rebuilds(), quantile=0.9)
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))
    scale = FRAME.to_numpy().std(axis=0)

    def errors(values: Floats) -> Floats:
        return np.asarray(((values - values @ axes @ axes.T) / scale), dtype=np.float64)

    limit = np.quantile((errors(FRAME.to_numpy()) ** 2).mean(axis=1), 0.9)
    found = ONNX.load(weights)
    values = np.random.default_rng(1).normal(size=(20, 3)) * 5
    np.testing.assert_allclose(_score(found, values), (errors(values) ** 2).mean(axis=1) / limit, rtol=1e-4)
    why = found.contributions(np.arange(20))
    np.testing.assert_allclose(why.expected, values @ axes @ axes.T, rtol=1e-4, atol=1e-4)
    squares = errors(values) ** 2
    np.testing.assert_allclose(abs(why.shares), squares / squares.sum(axis=1, keepdims=True), atol=1e-4)


def test_score_counts_from_its_median_to_its_quantile(tmp_path: Path) -> None:
    weights = _fit(tmp_path, scores(), gives="score", anomalous="low", quantile=0.99)
    own = abs(FRAME.to_numpy() - np.arange(3.0)).sum(axis=1)
    base, limit = np.quantile(own, [0.5, 0.99])
    values = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 22.0], [-30.0, 1.0, 2.0]])
    found = ONNX.load(weights)
    expected = np.maximum(np.array([0.0, 20.0, 30.0]) - base, 0.0) / (limit - base)
    np.testing.assert_allclose(_score(found, values), expected, rtol=1e-5)
    why = found.contributions(np.array([1, 2]))
    np.testing.assert_allclose(why.shares, [[0, 0, 1], [-1, 0, 0]], atol=0.02)
    np.testing.assert_allclose(why.expected[0], FRAME.to_numpy().mean(axis=0))


def test_trees_and_scalers_of_ai_onnx_ml_run(tmp_path: Path) -> None:
    scaler = helper.make_node(
        "Scaler", ["x"], ["z"], domain="ai.onnx.ml", offset=[0.0, 1.0, 2.0], scale=[1.0] * 3
    )
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["z"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[3.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 9.0],
    )  # fmt: skip
    made = model([scaler, tree], {}, gives=("n", 1), domains=("", "ai.onnx.ml"))
    found = ONNX.load(_fit(tmp_path, made, gives="score"))
    low, high = _score(found, np.array([[2.9, 0.0, 0.0], [3.1, 0.0, 0.0]]))
    assert low < 1 < high


def test_path_of_the_file_is_not_stored_and_the_file_is_not_needed_again(tmp_path: Path) -> None:
    weights = _fit(tmp_path, rebuilds())
    (tmp_path / "model.onnx").unlink()
    assert weights.settings["file"] == "model.onnx"
    assert weights.arrays["graph"].dtype == np.uint8
    assert np.isfinite(_score(ONNX.load(weights), np.zeros((1, 3)))).all()


def test_what_the_graph_cannot_say_is_anomalous(tmp_path: Path) -> None:
    made = model([helper.make_node("Sqrt", ["x"], ["y"])], {})
    found = ONNX.load(_fit(tmp_path, made, FRAME.abs()))
    assert _score(found, np.array([[-1.0, 1.0, 1.0]]))[0] > 1000
    assert np.isnan(found.contributions(np.array([0])).expected[0, 0])


def _external(inside: bool) -> Any:
    made = rebuilds()
    tensor = made.graph.initializer[0]
    if not inside:
        node = helper.make_node("Constant", [], ["k"], value=tensor)
        made.graph.node.insert(0, node)
        tensor = made.graph.node[0].attribute[0].t
        tensor.name = "hidden"
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return made


def _function() -> Any:
    made = rebuilds()
    body = [helper.make_node("Identity", ["p"], ["q"])]
    made.functions.append(helper.make_function("", "Mine", ["p"], ["q"], body, [helper.make_opsetid("", 17)]))
    return made


def _loop() -> Any:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9))],
        [helper.make_tensor_value_info("on", 9, [])],
    )
    made = rebuilds()
    made.graph.node.append(helper.make_node("Loop", ["", ""], [], body=inner))
    return made


def _one(op: str, inputs: list[str], weights: dict[str, Any], *more: Any, **attributes: Any) -> Any:
    return model([helper.make_node(op, inputs, ["y"], **attributes), *more], weights)


def _huge(length: int) -> Any:
    shape = helper.make_node("ConstantOfShape", ["s"], ["big"])
    total = helper.make_node("ReduceSum", ["big"], ["t"], keepdims=0)
    return model(
        [shape, total, helper.make_node("Add", ["x", "t"], ["y"])], {"s": np.array([length], np.int64)}
    )


def _outer() -> Any:
    nodes = [
        helper.make_node("MatMul", ["p", "q"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["t"], keepdims=0),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    return model(nodes, {"p": np.ones((4096, 1), np.float32), "q": np.ones((1, 4096), np.float32)})


def _lied() -> Any:
    made = _huge(10**9)
    made.graph.value_info.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [2]))
    return made


def _negative() -> Any:
    made = rebuilds()
    made.graph.initializer[0].dims[0] = -3
    return made


def _two_inputs() -> Any:
    made = rebuilds()
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3]))
    return made


def _unknown_size() -> Any:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["as_float"], to=1),
        helper.make_node("ReduceSum", ["as_float"], ["t"], keepdims=0),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    return model(nodes, {})


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "garbage": (lambda: b"\x80\x04not a model" * 50, "not an ONNX file|0 operators"),
    "empty": (lambda: b"", "0 operators"),
    "pickle": (
        lambda: b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix.",
        "not an ONNX file|0 operators",
    ),
    "truncated": (lambda: rebuilds().SerializeToString()[:-20], "not an ONNX file|not valid"),
    "ort_format": (lambda: b"\x18\x00\x00\x00ORTM" + bytes(64), "not an ONNX file|0 operators"),
    "external": (lambda: _external(True), 'tensor "w" lies outside the file'),
    "external_attribute": (lambda: _external(False), 'tensor "hidden" lies outside the file'),
    "custom_domain": (lambda: _one("Evil", ["x"], {}, domain="com.evil"), 'operator of "com.evil"'),
    "custom_opset": (
        lambda: model([helper.make_node("Relu", ["x"], ["y"])], {}, domains=("", "com.microsoft")),
        'operators of "com.microsoft"',
    ),
    "unknown_operator": (lambda: _one("RunThis", ["x"], {}), "not valid"),
    "function": (_function, "functions of its own"),
    "loop": (_loop, "Loop: its time and memory"),
    "random": (lambda: _one("RandomNormalLike", ["x"], {}), "differently each time"),
    "dropout": (
        lambda: _one("Dropout", ["x", "r", "t"], {"r": np.float32(0.5), "t": np.array(True)}),
        "training mode",
    ),
    "huge_by_shape": (lambda: _huge(10**9), "would have 1000000000 numbers"),
    "overflowing": (lambda: _huge(2**62), "would have|shapes do not fit|cannot be told"),
    "huge_by_product": (_outer, '"big" would have 16777216 numbers'),
    "lies_about_shapes": (_lied, "would have 1000000000 numbers"),
    "unknown_size": (_unknown_size, "cannot be told beforehand"),
    "negative": (_negative, "has the shape"),
    "two_inputs": (_two_inputs, r"2 inputs \(x, z\)"),
    "other_width": (lambda: rebuilds(4), r"takes \['\?', 4\]; it must take \(n, 3\)"),
    "fixed_batch": (
        lambda: model([helper.make_node("Relu", ["x"], ["y"])], {}, rows=8, gives=(8, 3)),
        r"takes \[8, 3\]",
    ),
    "integers": (
        lambda: model([helper.make_node("Abs", ["x"], ["y"])], {}, kind=TensorProto.INT64),
        "does not take floats",
    ),
    "gives_another_shape": (lambda: scores(), r"gives \(1, 1\) for one reading, not a reconstruction"),
    "does_not_fit": (
        lambda: _one("MatMul", ["x", "w"], {"w": np.ones((5, 3), np.float32)}),
        "do not fit|not valid",
    ),
}


@pytest.mark.parametrize(("made", "says"), HOSTILE.values(), ids=HOSTILE)
def test_file_that_must_not_run_is_refused_when_it_is_trained_and_when_it_is_loaded(
    made: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    monkeypatch.chdir(tmp_path)
    found = made()
    data = found if isinstance(found, bytes) else found.SerializeToString()
    with pytest.raises(ValueError, match=says):
        _fit(tmp_path, data)
    weights = _fit(tmp_path, rebuilds())
    stored = replace(weights, arrays={**weights.arrays, "graph": np.frombuffer(data, np.uint8)})
    with pytest.raises(ValueError, match=says):
        ONNX.load(stored)


def test_no_file_is_opened_for_weights_outside(tmp_path: Path) -> None:
    """Audited by the interpreter and by a named pipe, which would hang whoever opens it."""
    made = tmp_path / "model.onnx"
    made.write_bytes(_external(True).SerializeToString())
    os.mkfifo(tmp_path / "secret.bin")
    code = f"""
import sys, numpy as np
from detectors.graphs import Graph
data = np.frombuffer(open({str(made)!r}, "rb").read(), np.uint8)
import onnx, onnxruntime, google.protobuf.message
def watch(event, args):
    if event == "open" and "secret" in str(args[0]):
        print("opened", args[0])
sys.addaudithook(watch)
import os; os.chdir({str(tmp_path)!r})
try:
    Graph(data, 3)
except ValueError as error:
    print("refused", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith("refused tensor"), done.stderr


def test_damaged_file_is_refused_or_gives_a_graph_of_a_known_shape() -> None:
    rng = np.random.default_rng(0)
    messages: list[str] = []
    shapes: list[tuple[int, ...]] = []
    for made in (rebuilds(), scores()):
        for _ in range(150):
            data = np.frombuffer(made.SerializeToString(), np.uint8).copy()
            places = rng.integers(0, len(data), rng.integers(1, 4))
            data[places] = rng.integers(0, 256, len(places))
            try:
                shapes.append(Graph(data, 3).shape)
            except ValueError as error:
                messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert set(shapes) == {(1, 3), (1, 1)}
    assert len(messages) > 100


def test_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectors.onnx.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100"):
        _fit(tmp_path, rebuilds())
    monkeypatch.setattr(graphs, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100"):
        Graph(np.frombuffer(rebuilds().SerializeToString(), np.uint8), 3)


def test_missing_file_and_unknown_output_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.onnx: No such file"):
        ONNX(file=str(tmp_path / "nothing.onnx")).fit(FRAME)
    made = rebuilds()
    made.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 2]))
    with pytest.raises(ValueError, match="outputs y, h; say which"):
        _fit(tmp_path, made)
    with pytest.raises(ValueError, match='no output "z"; it has y, h'):
        _fit(tmp_path, made, output="z")
    assert _fit(tmp_path, made, output="y").settings["output"] == "y"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = _fit(tmp_path, rebuilds())
    bare = {name: array for name, array in weights.arrays.items() if name != "graph"}
    for odd in (
        replace(weights, arrays=bare),
        replace(weights, arrays={**weights.arrays, "graph": np.zeros(5)}),
        replace(weights, arrays={**weights.arrays, "scale": np.zeros(3)}),
        replace(weights, settings={**weights.settings, "output": 3}),
        replace(weights, kind="autoencoder"),
    ):
        with pytest.raises(ValueError, match=r"weights|graph"):
            ONNX.load(odd)


def test_scores_do_not_depend_on_the_number_of_rows_at_once(tmp_path: Path) -> None:
    n = 40
    frame = pd.DataFrame(np.random.default_rng(2).normal(size=(300, n)), columns=[f"s{i}" for i in range(n)])
    found = ONNX.load(_fit(tmp_path, rebuilds(n), frame))
    values = np.random.default_rng(3).normal(size=(129, n))
    whole = _score(found, values)
    for size in (1, 2, 3, 7, 64):
        parts = [_score(found, values[i : i + size]) for i in range(0, len(values), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
