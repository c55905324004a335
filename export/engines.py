"""Graphs for one execution provider of ONNX Runtime beside the portable ones: ``fp32-cpu``, ``fp16-cuda``.

Such a variant is its portable graph with nodes fused (``export.fusions``), under the name PRECISION-ENGINE. It shares
the file with the weights, is held against PyTorch as the portable graph is, and whoever does not know it ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRule

from export.errors import ExportError
from export.fusions import CPU_FUSIONS, CUDA_FUSIONS, fuse
from export.trace import TracedGraph, remove_traces


@dataclass(frozen=True)
class Engine:
    """What variants for an execution provider are made of.

    Attributes:
        precision: of the portable graph.
        provider: the name that ONNX Runtime gives it.
        fusions: are applied in this order.
        runs_here: whether parity is measured by running the variant itself; the others run expanded
            (``export.expansions``), since there may be no such device.
    """

    precision: str
    provider: str
    fusions: tuple[RewriteRule, ...]
    runs_here: bool


ENGINES = {
    "cpu": Engine("fp32", "CPUExecutionProvider", CPU_FUSIONS, runs_here=True),
    "cuda": Engine("fp16", "CUDAExecutionProvider", CUDA_FUSIONS, runs_here=False),
}


def check_engines(engines: Sequence[str] | None, precision: str) -> None:
    """See that there are such engines, and that each has use for the precision.

    Raises:
        ExportError: one is unknown, or computes in another precision.
    """
    for name in engines or ():
        if name not in ENGINES:
            raise ExportError(f"engine {name!r} is unknown; choose among {', '.join(ENGINES)}")
        if ENGINES[name].precision != precision:
            wanted = ENGINES[name].precision
            raise ExportError(
                f"the variant for {name} is made of {wanted} graphs, and these are {precision}; "
                f"export with --precision {wanted}, or leave {name} out of --engines"
            )


def chosen_engines(engines: Sequence[str] | None, traced: TracedGraph, precision: str) -> list[str]:
    """The engines that a graph gets variants for.

    Args:
        engines: those that were asked for, in every graph. None is the CPU where weights lie beside the graph: a
            variant with weights inside would hold them again.
        traced: the portable graph.
        precision: its precision.
    """
    if engines is None:
        engines = ["cpu"] if traced.external_data else []
    return [name for name in engines if ENGINES[name].precision == precision]


def write_variant(traced: TracedGraph, engine: str) -> TracedGraph | None:
    """Write a graph's variant for an engine into the same folder.

    Args:
        traced: the portable graph, whose name ends in its precision.
        engine: one of ``ENGINES``.

    Returns:
        The variant, with the same external data and map of weights; None where there is nothing to fuse, and no file
        was written.

    Raises:
        OSError: it cannot be written.
    """
    model = ir.load(traced.path)
    if not fuse(model, ENGINES[engine].fusions):
        return None
    remove_traces(model)
    path = traced.path.with_name(f"{traced.path.stem}-{engine}{traced.path.suffix}")
    ir.save(model, path)  # which leaves weights where they lie
    return replace(traced, path=path)
