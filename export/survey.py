"""The largest magnitude of every value in a float32 graph: what fp16, which ends at 65,504, would have to hold.

An fp16 graph itself cannot be asked. ONNX Runtime's CPU provider runs it in float32 and leaves out the casts in
between, so that a value of 100,000 passes through unnoticed and becomes infinite on the first GPU. So the float32 graph
is run on stress inputs, with a ``ReduceMax`` and a ``ReduceMin`` behind every value, and all optimisation off, since a
fused value could not be seen.

Engines also form values that are no tensors of the graph. ``Survey.largest`` counts two that fp16 engines are known to
hold in fp16:

- Squares in LayerNormalization. The standard asks for float32 statistics, but DirectML kept its variance in fp16
  (microsoft/onnxruntime#17692), and CUDA's fused skip and normalisation summed x² / n in fp16
  (microsoft/onnxruntime#28682). Both are means of squares, and so below the largest one: x² counts, which leaves an
  input up to 126 to fp16. (Of the other normalisations the standard promises nothing; ``export.half`` keeps them all.)
- Attention scores before they are scaled. An engine may move a factor behind the matrix product, as fused attention
  does; the product without it counts.

Others need no count. Matrix products and convolutions are summed in float32 on tensor cores, and where they are not,
partial sums have the factor of four between the limit and 65,504. Softmax subtracts the largest score first: its
exponentials are at most 1 and their sum is at most the number of keys, below 65,504 up to latents of 255 x 255. A
sigmoid's exponential may well overflow: 1 / (1 + inf) is the 0 that is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from export.errors import ExportError
from export.parity import open_session, session_options
from training.checkpoint import one_line

Array = npt.NDArray[Any]

# Attention masks are minus infinity, or else the lowest float32 for want of it. That these are beyond fp16 is no
# overflow: cast to it they still hide what they hide.
MASK = float(np.finfo(np.float32).min) / 2
MOVING = ("Reshape", "Transpose")  # what may lie between a factor and the matrix product that it belongs to


@dataclass(frozen=True)
class Survey:
    """What was seen.

    Attributes:
        magnitudes: the largest magnitude of each float32 value, by name: inputs, weights and outputs of nodes.
    """

    magnitudes: Mapping[str, float]

    def largest(self, node: ir.Node) -> float:
        """The largest magnitude that an engine may hold when it runs a node."""
        around = (self.magnitudes.get(str(value.name), 0.0) for value in (*node.inputs, *node.outputs) if value)
        return float(np.max([*around, self.within(node)]))  # which passes a NaN on, where max() may lose it

    def within(self, node: ir.Node) -> float:
        """The largest magnitude that is formed inside a node."""
        if node.op_type == "LayerNormalization":
            return self.magnitudes[name_of(node.inputs[0])] ** 2
        if node.op_type == "MatMul":
            factors = [abs(leading_factor(value)) for value in node.inputs]
            return self.magnitudes[name_of(node.outputs[0])] / min(1.0, float(np.prod(factors)) or 1.0)
        return 0.0


def name_of(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def leading_factor(value: ir.Value | None) -> float:
    """The constant by which a value was multiplied last, 1 where there is none."""
    producer = value.producer() if value else None
    while producer and producer.op_type in MOVING:
        value = producer.inputs[0]
        producer = value.producer() if value else None
    if producer and producer.op_type == "Mul":
        for factor in producer.inputs:
            constant = factor.const_value if factor else None
            if constant is not None and constant.size == 1:
                return float(constant.numpy().item())
    return 1.0


def load(path: Path) -> ir.Model:
    """Read a graph, its weights mapped into memory, with constants as initialisers and the dtype of every value.

    Raises:
        ExportError: an operator is not in the ONNX standard, a dtype cannot be inferred, or there are functions or
            graphs within nodes.
    """
    return prepared(ir.load(path), path.name)


def prepared(model: ir.Model, name: str) -> ir.Model:
    """What ``load`` makes of a graph that was read, in place; ``name`` is what messages call it."""
    for node in model.graph:
        if not onnx.defs.has(node.op_type, node.domain):
            raise ExportError(f"{name}: {node.domain or 'ai.onnx'}.{node.op_type} is not in the ONNX standard")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass()(model)
    if model.functions or len(list(model.graph.all_nodes())) != len(model.graph):
        raise ExportError(f"{name} has functions or nested graphs, which cannot be looked into")
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None:
                raise ExportError(f"{name}: the type of {value.name}, from {node.op_type}, cannot be inferred")
    return model


def survey(path: Path, samples: Sequence[Mapping[str, Array]]) -> Survey:
    """Run a float32 graph and note the largest magnitude of every value.

    Each sample is one run. Beside the graph itself it needs no memory: every value is reduced to two numbers as soon
    as it is there.

    Args:
        path: the ONNX file; weights may lie beside it.
        samples: inputs by name, such as ``export.stress`` draws.

    Raises:
        ExportError: there are no samples, or the graph does not run on them.
    """
    if not samples:
        raise ExportError(f"{path.name}: a survey needs inputs, and none were given")
    model = load(path)
    magnitudes = {
        name: magnitude(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None
    }
    watched = watch(model)
    run = open_graph(model, path)
    for sample in samples:
        seen = {name: magnitude(array) for name, array in sample.items() if array.dtype == np.float32}
        extremes = iter(run(sample))
        for name, highest, lowest in zip(watched, extremes, extremes, strict=True):
            # If the lowest is a mask, finite values beside it came from the node's inputs and were seen there.
            seen[name] = magnitude(np.array([highest, lowest]))
        for name, value in seen.items():
            magnitudes[name] = float(np.maximum(magnitudes.get(name, 0.0), value))
    return Survey(magnitudes)


def magnitude(array: Array) -> float:
    """max |array| but for masks; 0 of nothing."""
    if array.size and array.min() <= MASK:
        array = array[array > MASK]
    return float(np.maximum(array.max(), -array.min())) if array.size else 0.0


def watch(model: ir.Model) -> list[str]:
    """Make the largest and the smallest element of each float32 value, in turn, the graph's only outputs.

    Returns:
        The names of the values.
    """
    watched = []
    extremes: list[ir.Value] = []
    for node in list(model.graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or not (value.uses() or value.is_graph_output()):
                continue
            watched.append(name_of(value))
            for operator in ("ReduceMax", "ReduceMin"):
                reduction = ir.node(operator, [value], {"keepdims": 0}, name=f"{operator}:{value.name}")
                reduction.outputs[0].name = reduction.name
                reduction.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                reduction.outputs[0].shape = ir.Shape(())
                extremes.append(reduction.outputs[0])
                # Right behind its value, and run there (see open_graph), so that the value need not be kept.
                model.graph.insert_after(node, reduction)
    model.graph.outputs[:] = extremes
    return watched


def open_graph(model: ir.Model, path: Path) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Open a graph as it stands, without any optimisation and with its nodes in their order.

    Args:
        model: the graph, changed or not since it was read.
        path: the file that it was read from, whose weights may lie beside it.

    Returns:
        A function from the inputs by name to the outputs in order.

    Raises:
        ExportError: ONNX Runtime does not take the graph; and the function raises it when its inputs are not taken.
    """
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")  # which would hold the weights twice
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        proto = ir.serde.serialize_model(model).SerializeToString()
    except Exception as error:  # those of protobuf and onnx_ir have no base class in common
        raise ExportError(f"{path.name} does not load in ONNX Runtime: {one_line(error)}") from error
    _, run = open_session(proto, path.name, options)
    return run
