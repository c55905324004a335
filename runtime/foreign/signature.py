"""What an ONNX file says of itself: its inputs and outputs and the shapes of its weights, read without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.bundle import TensorSpec
from runtime.errors import BundleError
from runtime.protobuf import Buffer, Reader

# onnx.TensorProto.DataType, as far as such graphs use it at their boundary.
DTYPES: Mapping[int, str] = {1: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
# Field numbers of onnx.proto.
MODEL_OPSETS, MODEL_GRAPH, OPSET_DOMAIN, OPSET_VERSION = 8, 7, 1, 2
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 5, 11, 12
TENSOR_DIMS, TENSOR_NAME = 1, 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
SHAPE_DIMENSION, DIMENSION_VALUE, DIMENSION_NAME = 1, 1, 2


@dataclass
class GraphSignature:
    """Inputs and outputs in the graph's order, sizes of weights by name, and the version of the standard operators."""

    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int = 0


def read_signature(model: Buffer, where: str) -> GraphSignature:
    """Read the signature of an ONNX file.

    Raises:
        BundleError: it is no ONNX file, or an input or output is no tensor of a known type.
    """
    signature, reader = GraphSignature(), Reader(where)
    for number, value in reader.fields(memoryview(model)):
        if number == MODEL_GRAPH:
            read_graph(reader.message(value), reader, signature)
        elif number == MODEL_OPSETS:
            opset = dict(reader.fields(reader.message(value)))
            version = opset.get(OPSET_VERSION, 0)
            if not opset.get(OPSET_DOMAIN) and isinstance(version, int):
                signature.opset = version
    # Files of the first ONNX versions list weights among the inputs.
    signature.inputs = [spec for spec in signature.inputs if spec.name not in signature.weights]
    return signature


def read_graph(graph: Buffer, reader: Reader, signature: GraphSignature) -> None:
    for number, value in reader.fields(graph):
        if number == GRAPH_INPUT:
            signature.inputs.append(read_value(reader.message(value), reader))
        elif number == GRAPH_OUTPUT:
            signature.outputs.append(read_value(reader.message(value), reader))
        elif number == GRAPH_INITIALIZER:
            name, sizes = "", []
            for part, said in reader.fields(reader.message(value)):
                if part == TENSOR_NAME:
                    name = reader.text(said)
                elif part == TENSOR_DIMS and isinstance(said, int):
                    sizes.append(said)
            signature.weights[name] = tuple(sizes)


def read_value(value: Buffer, reader: Reader) -> TensorSpec:
    """One input or output: ``ValueInfoProto``."""
    parts = dict(reader.fields(value))
    name = reader.text(parts.get(VALUE_NAME, b""))
    kind = dict(reader.fields(reader.message(parts.get(VALUE_TYPE, b""))))
    tensor = dict(reader.fields(reader.message(kind.get(TYPE_TENSOR, b""))))
    element = tensor.get(TENSOR_TYPE_ELEMENT, 0)
    dtype = DTYPES.get(element) if isinstance(element, int) else None
    if dtype is None:
        raise BundleError(f"{reader.where}: {name!r} is no tensor of {', '.join(DTYPES.values())}")
    sizes: list[int | str] = []
    for number, dimension in reader.fields(reader.message(tensor.get(TENSOR_TYPE_SHAPE, b""))):
        if number == SHAPE_DIMENSION:
            said = dict(reader.fields(reader.message(dimension)))
            size = said.get(DIMENSION_VALUE)
            sizes.append(size if isinstance(size, int) else reader.text(said.get(DIMENSION_NAME, b"unknown")))
    return TensorSpec(name, dtype, tuple(sizes))
