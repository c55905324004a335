"""An fp16 graph as a GPU computes it: every value rounded to float16, sums within an operator in float32.

ONNX Runtime's CPU provider runs fp16 graphs in float32 and rounds hardly anything, so that what it says of an fp16
graph's accuracy is too good, and of overflow nothing. It does respect casts that the graph itself has. So here every
value that is float16 in the file is cast there and back, and all operators compute in float32: what overflows on a GPU
overflows here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from export.half import FLOAT, HALF, cast_node
from export.survey import Array, load, name_of, open_graph


def load_rounded(path: Path) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Open an fp16 file so that it rounds: slowly, on the CPU.

    Returns:
        A function from the inputs by name to the outputs by name, as ``export.parity.load_graph`` gives.

    Raises:
        ExportError: ONNX Runtime does not take the file; and the function raises it when its inputs are not taken.
    """
    model = load(path)
    graph = model.graph
    for weight in list(graph.initializers.values()):
        if weight.dtype == HALF:
            widen(graph, weight, None)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == HALF:
                widen(graph, value, node)
    names = [name_of(value) for value in graph.outputs]
    run = open_graph(model, path)
    return lambda inputs: dict(zip(names, run(inputs), strict=True))


def widen(graph: ir.Graph, value: ir.Value, producer: ir.Node | None) -> None:
    """Let a float16 value's users have it in float32, rounded."""
    users = list(value.uses())
    nodes = [cast_node(value, FLOAT, f"{value.name}.widened")]
    if producer and producer.op_type != "Cast":  # weights and results of casts are rounded already
        value.dtype = FLOAT
        nodes = [cast_node(value, HALF, f"{value.name}.rounded")]
        nodes.append(cast_node(nodes[0].outputs[0], FLOAT, f"{value.name}.widened"))
    if producer:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)
    for node, index in users:
        node.replace_input_with(index, nodes[-1].outputs[0])
