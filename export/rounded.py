"""An fp16 graph as a GPU computes it: every value rounded to float16, sums within an operator in float32.

ONNX Runtime's CPU provider runs fp16 graphs in float32 and rounds hardly anything, so that what it says of an fp16
graph's accuracy is too good, and of overflow nothing. It does respect casts that the graph itself has. So here every
value that is float16 in the file is cast there and back, and all operators compute in float32: what overflows on a GPU
overflows here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.graphs import GraphSpec
from export.half import FLOAT, HALF, cast_node
from export.parity import SEED, Parity, Question, questions, summarise
from export.survey import Array, load, name_of, open_graph

PSNR_FLOOR = 40.0
"""In dB: an fp16 graph that is further from PyTorch than this is broken. Rounding alone leaves 55 to 80 dB."""
HALF_TOLERANCE = 0.05
"""Of the largest value: five standard deviations of an error of 40 dB."""


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


def measure_half(spec: GraphSpec, path: Path, seed: int = SEED, cases: Sequence[Question] | None = None) -> Parity:
    """Hold an fp16 file against PyTorch, with everything rounded as a GPU rounds it.

    It is measured at the last of the spec's ``parity_sizes`` alone: that the graph is right at all of them was shown in
    float32, and rounding does not depend on sizes.

    Args:
        spec: the graph.
        path: the fp16 file.
        seed: of the inputs.
        cases: the one question, with PyTorch's answer, where PyTorch has been asked before.

    Returns:
        The parity, for the manifest; its tolerance is ``HALF_TOLERANCE`` of the largest value, and as much again.

    Raises:
        ExportError: the graph is not within that, or below ``PSNR_FLOOR``, or it does not run.
    """
    spec = replace(spec, parity_sizes=spec.parity_sizes[-1:], tolerance=HALF_TOLERANCE)
    [(inputs, answers)] = questions(spec, seed) if cases is None else cases
    outputs = load_rounded(path)(inputs)
    differences = [(outputs[name] - answer).astype(np.float64).ravel() for name, answer in answers.items()]
    largest = max(float(np.abs(answer).max()) for answer in answers.values())
    parity = summarise(spec, seed, np.concatenate(differences), largest, accepted=None)
    if not (parity.max_abs_diff <= parity.tolerance and parity.psnr_db >= PSNR_FLOOR):  # so that a NaN fails
        raise ExportError(
            f"{spec.role} differs in fp16 from PyTorch by {parity.max_abs_diff:.3e} where {parity.tolerance:.3e} is"
            f" allowed ({parity.psnr_db:.0f} dB, of at least {PSNR_FLOOR:.0f}); export it with --precision fp32"
        )
    return parity
