"""Reshapes whose target is a constant, where one can be: (0, 0, 8, 40) keeps two sizes and splits the third.

torch's exporter computes every target from sizes that it looks up in the graph. Engines then see a tensor of unknown
content where their fusions look for the number of heads, and a third of the graph is arithmetic on shapes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

KEEP, INFER = 0, -1


def simplify_reshapes(model: ir.Model) -> None:
    """Replace the target of every Reshape about which the shapes before and after it leave no doubt."""
    targets: dict[tuple[int, ...], ir.Value] = {}
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        target = constant_target(node)
        if target is None:
            continue
        if target not in targets:
            targets[target] = initializer(model, target)
        node.replace_input_with(1, targets[target])
        node.attributes.pop("allowzero", None)  # which would make KEEP a size of zero


def constant_target(node: ir.Node) -> tuple[int, ...] | None:
    """The target of a Reshape in numbers, or None where more than one size would have to be inferred."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return None
    target = tuple(
        size if isinstance(size, int) else KEEP if known(size) and size in before.shape[i : i + 1] else INFER
        for i, size in enumerate(after.shape)
    )
    return target if target.count(INFER) <= 1 else None


def known(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, int) or size.value is not None


def initializer(model: ir.Model, target: tuple[int, ...]) -> ir.Value:
    tensor = ir.Tensor(np.array(target, np.int64), name="shape:" + ",".join(map(str, target)))
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
    model.graph.register_initializer(value)
    return value
