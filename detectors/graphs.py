"""ONNX graphs as data: what may stand in one, and a session that scores readings with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats

__all__ = ["MAX_BYTES", "Graph"]

MAX_BYTES = 64 * 2**20
"""Cap on a graph with its weights."""

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_REFUSED = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "its time and memory cannot be told beforehand"),
    **dict.fromkeys(
        (
            "Bernoulli",
            "Multinomial",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
        ),
        "the same reading would score differently each time",
    ),
}
_MAX_NODES = 10_000
_MAX_ELEMENTS = 2**22
"""Cap on each tensor that comes up while one reading is scored."""
_SAME_SHAPE = frozenset({"Binarizer", "Imputer", "Normalizer", "Scaler"})
"""Of ai.onnx.ml: onnx infers no shape of theirs; it is that of their input."""
_LARGEST_SINGLE = 3e38


class Graph:
    """A checked graph: one input (1, n_sensors), one output; scored on the processor by one thread.

    Nothing in it is trusted: no functions of its own, no operators but the standard's (ai.onnx, ai.onnx.ml), no
    control flow, no randomness, no data outside, every size known before anything is run. What onnxruntime is
    given is written anew from the parts that were checked.

    One reading is scored at a time. Other numbers of rows may be summed in another order, and a score would depend
    in its last bit on where the stream is cut.
    """

    def __init__(self, data: NDArray[np.uint8], n_sensors: int, output: str | None = None) -> None:
        """Raises ValueError on anything but such a graph; `output` names one, where it has several."""
        try:
            model = _parsed(data)
            _check_parts(model)
            self._input, self._single = _fix_input(model.graph, n_sensors)
            self._output = _chosen(model.graph, output)
            _check_sizes(model)
            self._session = _session(model)
            self.shape = self._run(np.zeros(n_sensors)).shape
            """Of the output for one reading."""
        except ValueError as error:  # names in it are the file's own
            raise ValueError(_first_line(error)) from error

    def __call__(self, readings: Floats) -> Floats:
        """Outputs (n, …) of readings (n, n_sensors), which must be finite."""
        found = np.empty((len(readings), *self.shape))
        for i, reading in enumerate(readings):
            found[i] = self._run(reading)
        return found

    def _run(self, reading: Floats) -> Floats:
        given = reading[np.newaxis]
        if self._single:
            given = np.clip(given, -_LARGEST_SINGLE, _LARGEST_SINGLE).astype(np.float32)
        try:
            [found] = self._session.run([self._output], {self._input: given})
        except Exception as error:  # its own hierarchy, without a common root
            raise ValueError(f"the graph cannot score a reading: {_first_line(error)}") from error
        return np.asarray(found, dtype=np.float64)


def _parsed(data: NDArray[np.uint8]) -> Any:
    """The graph, its opsets and nothing else of the file."""
    import onnx  # takes a third of a second, for those who need it

    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"an ONNX graph is stored as bytes, not {data.dtype}{data.shape}")
    if len(data) > MAX_BYTES:
        raise ValueError(f"the ONNX file has {len(data)} bytes; at most {MAX_BYTES}")
    try:
        found = onnx.ModelProto.FromString(data.tobytes())
    except Exception as error:  # the parser's own, which onnx does not name
        raise ValueError(f"not an ONNX file: {_first_line(error)}") from error
    found.DiscardUnknownFields()
    if found.functions or found.training_info:
        raise ValueError(
            "the ONNX file brings functions of its own; export it for inference, with standard operators"
        )
    model = onnx.ModelProto(ir_version=found.ir_version, opset_import=found.opset_import)
    for part in ("node", "initializer", "sparse_initializer", "input", "output"):
        getattr(model.graph, part).extend(getattr(found.graph, part))
    model.graph.name = found.graph.name or "graph"
    return model


def _check_parts(model: Any) -> None:
    import onnx

    graph = model.graph
    if not graph.node or len(graph.node) > _MAX_NODES:
        raise ValueError(f"the graph has {len(graph.node)} operators; 1 to {_MAX_NODES} can be used")
    for opset in model.opset_import:
        if opset.domain not in _DOMAINS:
            raise ValueError(
                f'the graph uses operators of "{opset.domain}"; only ai.onnx and ai.onnx.ml are taken'
            )
    tensors = list(graph.initializer)
    sparse = bool(graph.sparse_initializer)
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise ValueError(
                f'{node.op_type} is an operator of "{node.domain}"; only ai.onnx and ai.onnx.ml are taken'
            )
        if node.op_type in _REFUSED:
            raise ValueError(f"the graph uses {node.op_type}: {_REFUSED[node.op_type]}")
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if training or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]):
            raise ValueError(f"{node.op_type} is in training mode; export the model for inference")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ValueError(f"{node.op_type} holds a graph of its own, which is not taken")
            sparse = sparse or attribute.HasField("sparse_tensor") or bool(attribute.sparse_tensors)
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
    if sparse:
        raise ValueError("the graph holds sparse tensors, which are not taken; store them dense")
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(
                f'tensor "{tensor.name}" lies outside the file; save the model with its weights inside'
            )
        if any(length < 0 for length in tensor.dims) or math.prod(tensor.dims) > 8 * MAX_BYTES:
            raise ValueError(f'tensor "{tensor.name}" has the shape {list(tensor.dims)}')
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ValueError(f"the ONNX graph is not valid: {_first_line(error)}") from error


def _fix_input(graph: Any, n_sensors: int) -> tuple[str, bool]:
    """The one input's name, and whether it takes single precision; it is made to take one reading."""
    import onnx

    weights = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    if len(given) != 1:
        names = ", ".join(value.name for value in given) or "none"
        raise ValueError(f"the graph has {len(given)} inputs ({names}); it must take one, (n, {n_sensors})")
    tensor = given[0].type.tensor_type
    if tensor.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise ValueError(f'input "{given[0].name}" does not take floats (32 or 64 bits)')
    lengths = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if len(lengths) != 2 or lengths[0] not in (None, 1) or lengths[1] not in (None, n_sensors):
        shown = [length or "?" for length in lengths]
        raise ValueError(
            f'input "{given[0].name}" takes {shown}; it must take (n, {n_sensors}), a column a sensor'
        )
    tensor.shape.dim[0].dim_value, tensor.shape.dim[1].dim_value = 1, n_sensors
    return str(given[0].name), bool(tensor.elem_type == onnx.TensorProto.FLOAT)


def _chosen(graph: Any, output: str | None) -> str:
    names = [value.name for value in graph.output]
    if output is None and len(names) != 1:
        raise ValueError(f"the graph has the outputs {', '.join(names)}; say which counts (output)")
    if output is not None and output not in names:
        raise ValueError(f'the graph has no output "{output}"; it has {", ".join(names)}')
    return str(output or names[0])


def _check_sizes(model: Any) -> None:
    """Every tensor that comes up has a shape known beforehand, and is not too large."""
    import onnx

    for value in model.graph.output:  # what the file says of it is not to be believed
        value.type.tensor_type.ClearField("shape")
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(
                model, check_type=True, strict_mode=True, data_prop=True
            )
        except Exception as error:  # InferenceError, or whatever a hostile attribute brings about
            raise ValueError(f"the graph's shapes do not fit together: {_first_line(error)}") from error
        known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
        known |= {value.name: value for value in inferred.graph.input}
        unknown = [
            (node, name)
            for node in model.graph.node
            for name in node.output
            if name and _elements(known, name) is None
        ]
        if not unknown:
            break
        node, name = unknown[0]
        if node.op_type not in _SAME_SHAPE or _elements(known, node.input[0]) is None:
            raise ValueError(
                f'the size of "{name}" ({node.op_type}) cannot be told beforehand; export fixed shapes'
            )
        same = onnx.ValueInfoProto(name=name)
        same.type.CopyFrom(known[node.input[0]].type)
        same.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if name in {value.name for value in model.graph.output}:
            next(value for value in model.graph.output if value.name == name).CopyFrom(same)
        else:
            model.graph.value_info.append(same)
    for name in known:
        if (size := _elements(known, name) or 0) > _MAX_ELEMENTS:
            raise ValueError(f'"{name}" would have {size} numbers for one reading; at most {_MAX_ELEMENTS}')


def _elements(known: dict[str, Any], name: str) -> int | None:
    """How many numbers a tensor holds, None where that is not known."""
    if name not in known or not known[name].type.tensor_type.HasField("shape"):
        return None
    lengths = [
        dim.dim_value if dim.HasField("dim_value") else -1 for dim in known[name].type.tensor_type.shape.dim
    ]
    return None if any(length < 0 for length in lengths) else math.prod(lengths)


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(deterministic=True), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own hierarchy, without a common root
        raise ValueError(f"onnxruntime refuses the graph: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What it says, short and printable."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return "".join(sign if sign.isprintable() else "?" for sign in line)
