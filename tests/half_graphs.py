"""Small graphs to convert to fp16, and what the tests look at in them.

``naive`` is what the conversion is measured against: the same graph in fp16 without a survey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.half import HalfReport, convert, write_half
from export.survey import load

Array = npt.NDArray[np.generic]
SHAPE = (2, 8, 6)
NODE = helper.make_node


def write(path: Path, nodes: Sequence[onnx.NodeProto], weights: Mapping[str, object] | None = None) -> Path:
    """A graph from ``x``, float32 (a, b, c), to ``y`` of any shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", "c"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(weight), name) for name, weight in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def floats(value: object) -> npt.NDArray[np.float32]:
    return np.asarray(value, np.float32)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def naive(path: Path) -> Path:
    model = load(path)
    convert(model, kept=set())
    target = path.with_name("naive.onnx")
    ir.save(model, target)
    return target


def convert_with(path: Path, *samples: Array) -> HalfReport:
    return write_half(path, path.with_name("half.onnx"), [{"x": sample} for sample in samples])


def in_numpy(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of a graph, computed by the reference implementation of ONNX in NumPy's own float16."""
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(str(path)).run(None, dict(inputs), intermediate=True)
    return {name: value for name, value in values.items() if name}


def psnr(reference: Array, other: Array) -> float:
    error = np.sqrt(np.mean((reference.astype(np.float64) - other) ** 2))
    return float(20 * np.log10(np.abs(reference).max() / error))


def dtypes(path: Path) -> dict[str, int]:
    """Of initialisers."""
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


OVERFLOWING = {"up": 50_000 * noise((6, 6), seed=1).clip(-0.3, 0.3), "down": noise((6, 3), seed=2) / 100_000}


def overflowing_graph(path: Path) -> Path:
    """Small numbers in, small numbers out, and up to 400,000 in the middle, through two nodes."""
    nodes = [
        NODE("MatMul", ["x", "up"], ["a"]),
        NODE("Relu", ["a"], ["large"]),
        NODE("Transpose", ["large"], ["turned"], perm=[0, 1, 2]),
        NODE("MatMul", ["turned", "down"], ["b"]),
        NODE("Tanh", ["b"], ["c"]),
        NODE("Mul", ["c", "c"], ["y"]),
    ]
    return write(path, nodes, OVERFLOWING)
