"""Weights of linear layers as ONNX's MatMul takes them, (in, out), where PyTorch has (out, in).

The exporter puts a Transpose in between. Engines compute it when they load the graph, which takes a second copy of
every such weight, and fusions do not look through it.
"""

from __future__ import annotations

import onnx_ir as ir


def transpose_weights(model: ir.Model, weights: set[str]) -> None:
    """Store those of ``weights`` transposed, under their names, that are only ever used so."""
    for name in sorted(weights & model.graph.initializers.keys()):
        weight = model.graph.initializers[name]
        uses = weight.uses()
        if weight.const_value is None or not uses or not all(swaps(use.node) for use in uses):
            continue
        tensor = ir.Tensor(weight.const_value.numpy().T, name=name)  # a view: nothing is copied before it is written
        weight.const_value, weight.shape = tensor, tensor.shape
        for use in uses:
            use.node.outputs[0].replace_all_uses_with(weight)
            model.graph.remove(use.node, safe=True)


def swaps(node: ir.Node) -> bool:
    """Whether a node exchanges the two dimensions of a matrix."""
    return node.op_type == "Transpose" and node.attributes.get_ints("perm", ()) == (1, 0)
