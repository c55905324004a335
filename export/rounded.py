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
from export.expansions import expand
from export.graphs import GraphSpec
from export.half import FLOAT, HALF, cast_node
from export.parity import PSNR_CEILING, SEED, Parity, Question, load_graph, questions, summarise
from export.survey import Array, name_of, open_graph, prepared

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""From the inputs of a graph by name to its outputs by name."""

MEDIAN_FLOOR = 40.0
"""In dB: an fp16 graph whose median channel is further from PyTorch is broken. Rounding alone leaves 47 and more."""
WORST_FLOOR = 35.0
"""In dB: the same of its worst channel. Rounding alone leaves 43 and more."""
HALF_TOLERANCE = 0.05
"""Of the largest value: what no single number may be off by."""


def load_rounded(path: Path, expanded: bool = False) -> Run:
    """Open an fp16 file so that it rounds: slowly, on the CPU.

    Args:
        path: the file.
        expanded: write operators of ONNX Runtime's own in standard ones first (``export.expansions``); without it they
            are refused.

    Returns:
        A function from the inputs by name to the outputs by name, as ``export.parity.load_graph`` gives.

    Raises:
        ExportError: ONNX Runtime does not take the file; and the function raises it when its inputs are not taken.
    """
    model = ir.load(path)
    if expanded:
        expand(model)
    graph = prepared(model, path.name).graph
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


def measure_half(
    spec: GraphSpec, path: Path, seed: int = SEED, cases: Sequence[Question] | None = None, expanded: bool = False
) -> Parity:
    """Hold an fp16 file against PyTorch at the spec's ``half_cases``, rounded as a GPU does and as an engine opens it.

    Args:
        spec: the graph.
        path: the fp16 file.
        seed: of the inputs.
        cases: what ``questions`` gave for this seed, where PyTorch has been asked before.
        expanded: the file has operators that this machine may have no kernels for. It is not opened as it stands, but
            expanded (``load_rounded``).

    Returns:
        The parity where everything is rounded, for the manifest; its tolerance is ``HALF_TOLERANCE`` of the largest
        value, and as much again.

    Raises:
        ExportError: the graph is not within that, or below ``MEDIAN_FLOOR`` or ``WORST_FLOOR``, a result has the wrong
            shape, or the file does not run.
    """
    cases = questions(spec, seed) if cases is None else cases
    cases = [cases[index] for index in spec.half_cases]
    spec = replace(
        spec, parity_sizes=tuple(spec.parity_sizes[index] for index in spec.half_cases), tolerance=HALF_TOLERANCE
    )
    if not expanded:
        compare_half(spec, load_graph(path), seed, cases)
    return compare_half(spec, load_rounded(path, expanded), seed, cases)


def compare_half(spec: GraphSpec, run: Run, seed: int, cases: Sequence[Question]) -> Parity:
    """One way of running the file; arguments and errors as in ``measure_half``."""
    differences: list[Array] = []
    references: list[Array] = []
    for inputs, answers in cases:
        outputs = run(inputs)
        for name, answer in answers.items():
            if outputs[name].shape != answer.shape:
                raise ExportError(f"{spec.role}: {name} has shape {outputs[name].shape} in fp16, not {answer.shape}")
            differences.append(by_channel(outputs[name].astype(np.float64) - answer, spec.channel_axis))
            references.append(by_channel(answer.astype(np.float64), spec.channel_axis))
    # Case by case: a channel that one of them has wrong must not hide behind another.
    ratios = [signal_to_noise(answer, error) for answer, error in zip(references, differences, strict=True)]
    median, worst = np.min(ratios, axis=0)
    errors = np.concatenate([error.ravel() for error in differences])
    parity = summarise(spec, seed, errors, float(max(np.abs(answer).max() for answer in references)), accepted=None)
    # Written so that a NaN fails, whatever it is compared with.
    if not (parity.max_abs_diff <= parity.tolerance and median >= MEDIAN_FLOOR and worst >= WORST_FLOOR):
        raise ExportError(
            f"{spec.role} differs in fp16 from PyTorch by {parity.max_abs_diff:.3e} where {parity.tolerance:.3e} is"
            f" allowed ({median:.0f} dB, of at least {MEDIAN_FLOOR:.0f}, in the median channel, and {worst:.0f} dB, of"
            f" at least {WORST_FLOOR:.0f}, in the worst); export it with --precision fp32"
        )
    return parity


def by_channel(values: Array, axis: int) -> Array:
    """(channels, everything else)."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def signal_to_noise(reference: Array, error: Array) -> tuple[float, float]:
    """In dB, of two arrays of shape (channels, numbers).

    Returns:
        the median over channels, where the signal is a channel's standard deviation: a few outlier channels or a
        common offset say nothing of the others;
        the worst channel's, where the signal is its root mean square: a channel may be all but constant, and then
        float16 rounds its offset.
    """
    least = float(np.finfo(np.float32).tiny)  # a channel may be 0 all over, and then exactly so
    noise = np.maximum(np.sqrt(np.mean(error**2, axis=1)), least * 10 ** (-PSNR_CEILING / 20))
    deviation, size = np.std(reference, axis=1), np.sqrt(np.mean(reference**2, axis=1))
    median = np.median(20 * np.log10(np.maximum(deviation, least) / noise))
    return float(median), float(np.min(20 * np.log10(np.maximum(size, least) / noise)))
