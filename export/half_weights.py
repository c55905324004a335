"""Weights that lie in float16 and are computed with in float32: half the size on disk, and any engine's arithmetic.

The weights are rounded first, in PyTorch, and everything that is compared afterwards is compared with the rounded
model; what the rounding itself changes is measured and bounded here. In the file a ``Cast`` follows each weight, which
engines compute once, when they load the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from export.errors import ExportError
from export.graphs import GraphSpec
from export.half import halve
from export.parity import SEED, Parity, questions
from export.rounded import HALF_TOLERANCE, compare_half, widen
from export.survey import Array, load
from export.trace import EXTERNAL_DATA_ABOVE, TracedGraph, remove_traces, save


def round_weights(spec: GraphSpec) -> Parity:
    """Round the weights of a module to float16, and say what that changes.

    Args:
        spec: its module's weights are replaced; none is written to.

    Returns:
        How far the rounded module is from the one before.

    Raises:
        ExportError: a weight is beyond the range of float16, or the rounded module is too far from the one before.
    """
    before = questions(spec, SEED)
    rounded = {}
    for name, tensor in spec.module.state_dict().items():
        rounded[name] = tensor.half().float() if tensor.is_floating_point() else tensor
        if not rounded[name].isfinite().all():
            raise ExportError(f"{spec.role}: {name} is beyond the range of float16; leave out --half-weights")
    spec.module.load_state_dict(rounded, assign=True)

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in spec.reference(tensors).items()}

    return compare_half(replace(spec, tolerance=HALF_TOLERANCE), answer, SEED, before)


def store_half(traced: TracedGraph, external_data_above: int = EXTERNAL_DATA_ABOVE) -> TracedGraph:
    """Let the weights of a written graph lie in float16, under their names; they must be rounded already.

    Args:
        traced: its files are replaced.
        external_data_above: bytes of weights beyond which they lie in a file of their own, as for ``export.trace``.

    Raises:
        OSError: a file cannot be written.
    """
    model = load(traced.path)
    graph = model.graph
    for place in traced.initializers.values():
        weight = graph.initializers[str(place["name"])]
        halve(weight)
        widen(graph, weight, None)
    remove_traces(model)
    with TemporaryDirectory(dir=traced.path.parent) as aside:  # weights are read from the old files until the end
        external = save(model, Path(aside, traced.path.name), external_data_above)
        for old in traced.files:
            old.unlink()
        written = replace(traced, external_data=external and traced.path.with_name(external.name))
        for new in written.files:
            Path(aside, new.name).replace(new)
    return written
