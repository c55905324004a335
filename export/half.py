"""An fp16 graph from a float32 one: half the size, for engines that compute in fp16.

Weights and arithmetic are float16; inputs and outputs stay float32. What fp16 cannot do stays float32 too:

- nodes around which, or inside which, a magnitude above 16,000 was seen (``export.survey``): a quarter of what fp16
  holds, since no stress input is the worst one;
- group normalisation. It sums the squares of up to a million numbers, and nothing in the standard keeps an engine
  from doing so in fp16, which ends there: ONNX Runtime's WebGPU provider did (microsoft/onnxruntime#24514). No survey
  could clear it, since the sum grows with the picture. The authors of Stable Diffusion kept it in float32 as well, and
  PyTorch's autocast does. For layer normalisation the standard itself asks for float32 inside;
- everything from the timestep to its sines and cosines: above 512, fp16 has steps of 0.5, which are half radians of
  angle;
- what the ONNX standard has no float16 for (``Range``; the scales of ``Resize``).

Softmax becomes fp16: the largest score is subtracted first, so that nothing can overflow, and engines sum in float32.

ONNX Runtime's own converter (``onnxruntime.transformers.float16``) was tried first. It casts what passes between two
nodes that are kept in float32 to float16 and back, so that the very value for whose sake they were kept overflows on
its way; it clips weights beyond the range without a word; and it holds a whole model in memory, more than once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.survey import Array, Survey, load, name_of, survey
from export.trace import EXTERNAL_DATA_ABOVE, remove_traces, save

LIMIT = 16_000.0
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
GROUP_NORMS = ("GroupNormalization", "InstanceNormalization")  # the exporter writes the one by means of the other
LOWEST = np.float32(np.finfo(np.float16).min)
INDIFFERENT = ("Cast", "Shape", "Size")  # to the dtype of what they read
LISTED = 5  # values in a report


@dataclass(frozen=True)
class HalfReport:
    """What became of a graph.

    Attributes:
        path: the fp16 file.
        external_data: the file with its weights, or None when they are inside.
        nodes: how many nodes compute with floating-point numbers.
        kept: how many of them stayed float32.
        largest: the largest few magnitudes in the float32 graph, by the name of the value (see ``largest_formed``).
        max_magnitude: the largest magnitude that was left to float16.
        vanished: how many weights were not 0 and became 0, being below 3e-8.
    """

    path: Path
    external_data: Path | None
    nodes: int
    kept: int
    largest: Mapping[str, float]
    max_magnitude: float
    vanished: int

    def __str__(self) -> str:
        kept = f"{self.kept} of {self.nodes} nodes stay float32, magnitudes in float16 up to {self.max_magnitude:,.0f}"
        return f"{kept}, {self.vanished:,} weights became 0" if self.vanished else kept


def write_half(
    fp32_path: Path,
    half_path: Path,
    samples: Sequence[Mapping[str, Array]],
    external_data_above: int = EXTERNAL_DATA_ABOVE,
) -> HalfReport:
    """Write the fp16 graph of a float32 one.

    Initialisers keep their names and layouts, so that ``TracedGraph.initializers`` of the float32 file holds for both,
    and so do inputs and outputs with their float32. The same file and samples give the same bytes.

    Args:
        fp32_path: the file that ``export.trace`` wrote.
        half_path: the file to write, in any folder.
        samples: the inputs of the survey, from ``export.stress.stress_inputs``.
        external_data_above: bytes of weights beyond which they are written beside the file, as ``export.trace`` does.

    Raises:
        ExportError: the graph does not run on the samples, or has operators of a single engine.
        OSError: a file cannot be read or written.
    """
    seen = survey(fp32_path, samples)
    model = load(fp32_path)
    kept = staying_float32(model, seen)
    largest = largest_formed(model, seen)
    max_magnitude = max((seen.largest(node) for node in model.graph if node not in kept), default=0.0)
    arithmetic = [node for node in model.graph if any(is_float(value) for value in (*node.inputs, *node.outputs))]
    vanished = convert(model, kept)
    remove_traces(model)
    return HalfReport(
        path=half_path,
        external_data=save(model, half_path, external_data_above),
        nodes=len(arithmetic),
        kept=sum(node in kept for node in arithmetic),
        largest=largest,
        max_magnitude=max_magnitude,
        vanished=vanished,
    )


def staying_float32(model: ir.Model, seen: Survey) -> set[ir.Node]:
    """The nodes that must not compute in float16; the reasons stand at the head of this file."""
    overflowing = {node for node in model.graph if not seen.largest(node) <= LIMIT}  # a NaN, too
    return overflowing | before_sines(model) | {node for node in model.graph if node.op_type in GROUP_NORMS}


def largest_formed(model: ir.Model, seen: Survey) -> dict[str, float]:
    """The largest few magnitudes: of values, and under the names of results what is formed on the way to them."""
    formed = dict(seen.magnitudes)
    for node in model.graph:
        result = name_of(node.outputs[0])
        formed[result] = max(formed.get(result, 0.0), seen.within(node))
    return dict(sorted(formed.items(), key=lambda item: -item[1])[:LISTED])


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


def is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == HALF


def before_sines(model: ir.Model) -> set[ir.Node]:
    """Sines, cosines, and all nodes whose results become their angles."""
    found: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if node.op_type in ("Sin", "Cos") or found.intersection(node.successors()):
            found.add(node)
    return found


def convert(model: ir.Model, kept: set[ir.Node]) -> int:
    """Make a float32 graph float16 except for some nodes.

    Returns:
        How many weights became 0.
    """
    weights = [value for value in model.graph.initializers.values() if is_float(value)]
    vanished = 0
    for weight in weights:
        if HALF in {wanted(node, index, kept) for node, index in weight.uses()}:
            vanished += halve(weight)
    values = [*model.graph.inputs, *weights]
    for node in list(model.graph):
        for index, value in enumerate(node.outputs):
            if is_float(value) and node not in kept and may_be_half(node, index, outputs=True):
                value.dtype = HALF
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", HALF)
        values += node.outputs
    for value in values:
        cast_where_wanted(model.graph, value, kept)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype == HALF:
            model.graph.outputs[index] = cast_output(model.graph, value)
    return vanished


def wanted(node: ir.Node, index: int, kept: set[ir.Node]) -> ir.DataType | None:
    """The dtype in which a node takes a floating-point input; None is any."""
    if node.op_type in INDIFFERENT:
        return None
    return HALF if node not in kept and may_be_half(node, index) else FLOAT


def may_be_half(node: ir.Node, index: int, outputs: bool = False) -> bool:
    """Whether the standard lets an input or output be float16."""
    if outputs and node.op_type != "Cast" and not any(is_float(value) or is_half(value) for value in node.inputs):
        return False  # Numbers from nothing have their dtype from some attribute, which stays as it is.
    assert node.graph is not None
    schema = onnx.defs.get_schema(node.op_type, node.graph.opset_imports[node.domain], node.domain)
    formals = schema.outputs if outputs else schema.inputs
    return "tensor(float16)" in formals[min(index, len(formals) - 1)].types  # the last may stand for any number


def halve(weight: ir.Value) -> int:
    """Make an initialiser float16, anew whenever it is read, so that a large graph is never held in memory.

    Returns:
        How many of its numbers became 0.
    """
    tensor = weight.const_value
    assert tensor is not None

    def rounded() -> ir.Tensor[Array]:
        # Only a mask can be beyond the range, since all else that is stays float32 (see export.survey).
        return ir.Tensor(np.maximum(tensor.numpy(), LOWEST).astype(np.float16), name=weight.name)

    weight.const_value = ir.LazyTensor(rounded, HALF, ir.Shape(tensor.shape.numpy()), name=weight.name)
    weight.dtype = HALF
    return int(np.count_nonzero(tensor.numpy()) - np.count_nonzero(rounded().numpy()))


def cast_where_wanted(graph: ir.Graph, value: ir.Value, kept: set[ir.Node]) -> None:
    """Give a value's users the dtype that they take, by one cast for all of them."""
    if value.dtype not in (FLOAT, HALF):
        return
    other = HALF if value.dtype == FLOAT else FLOAT
    users = [(node, index) for node, index in value.uses() if wanted(node, index, kept) == other]
    if not users:
        return
    cast = cast_node(value, other, f"{value.name}.{other.name.lower()}")
    producer = value.producer()
    if producer:
        graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])


def cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Let a float32 value take the name and the shape of a float16 output."""
    cast = cast_node(value, FLOAT, name_of(value))
    value.name = f"{value.name}.float16"
    cast.outputs[0].shape = value.shape
    graph.append(cast)
    return cast.outputs[0]


def cast_node(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast:{name}")
    cast.outputs[0].name = name
    cast.outputs[0].type = ir.TensorType(dtype)
    return cast
