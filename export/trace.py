"""From a ``GraphSpec`` to an ONNX file: the same file every time, with every weight where its name says.

The exporter's own optimisation stays off. It would fold batch normalisation into convolutions and lay linear weights
out anew, under names of its own, and then nothing could find a weight again: not the merging of LoRA, not a check
without the checkpoint. ONNX Runtime does that folding at load. What is folded here is only what holds no weight:
arithmetic on shapes and on constants.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from torch import nn

from export.attention import FUSABLE
from export.errors import ExportError
from export.graphs import GraphSpec, Shape
from export.reshapes import simplify_reshapes
from export.transposes import transpose_weights
from training.checkpoint import one_line

# The oldest that has Gelu as one operator; an older one runs on more engines, and nothing of the newer ones is needed.
OPSET = 20
# Beyond this, weights lie in a file of their own beside the graph. ONNX Runtime then holds them once: a text encoder of
# 0.49 GB takes 0.5 GB, where it takes 0.84 GB with the weights inside, and loads in half the time.
EXTERNAL_DATA_ABOVE = 2**26


@dataclass(frozen=True)
class TracedGraph:
    """An ONNX file and what the manifest says of it.

    Attributes:
        path: the file.
        external_data: the file with its weights, or None when they are inside.
        inputs, outputs: name, dtype and shape of each, in order.
        initializers: name in the state dict -> name in the file, and whether it lies there transposed.
    """

    path: Path
    external_data: Path | None
    inputs: list[dict[str, object]]
    outputs: list[dict[str, object]]
    initializers: dict[str, dict[str, object]]

    @property
    def files(self) -> list[Path]:
        """The file, and the one with its weights if there is one."""
        return [path for path in (self.path, self.external_data) if path is not None]


def trace(spec: GraphSpec, path: Path, external_data_above: int = EXTERNAL_DATA_ABOVE) -> TracedGraph:
    """Write ``spec`` as an ONNX file.

    Args:
        spec: the graph.
        path: the file to write.
        external_data_above: bytes of weights beyond which they are written to a file of their own, ``path`` and
            ``.data``.

    Raises:
        ExportError: the module cannot be traced, a dynamic dimension came out fixed, or a weight cannot be found again.
        OSError: the file cannot be written.
    """
    model = to_onnx(spec)
    fold_constants(model, set(spec.module.state_dict()))
    remove_traces(model)
    declare_shapes(model.graph.inputs, {name: entry.shape for name, entry in spec.inputs.items()}, spec.role)
    declare_shapes(model.graph.outputs, spec.outputs, spec.role)

    return TracedGraph(
        path=path,
        external_data=save(model, path, external_data_above),
        inputs=[describe(value) for value in model.graph.inputs],
        outputs=[describe(value) for value in model.graph.outputs],
        initializers=locate_weights(spec.module, path),
    )


def save(model: ir.Model, path: Path, external_data_above: int = EXTERNAL_DATA_ABOVE) -> Path | None:
    """Write a model.

    Returns:
        The file with its weights, ``path`` and ``.data``, or None when they are no more than ``external_data_above``
        bytes and lie inside.

    Raises:
        OSError: a file cannot be written.
    """
    weight_bytes = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    external = path.with_name(f"{path.name}.data") if weight_bytes > external_data_above else None
    ir.save(model, path, external_data=external.name if external else None)
    return external


def to_onnx(spec: GraphSpec) -> ir.Model:
    """Trace the module with inputs of its example sizes."""
    example = spec.draw(spec.example_sizes, torch.Generator().manual_seed(0))
    dimensions = {name: torch.export.Dim(name, max=spec.largest_sizes.get(name)) for name in spec.example_sizes}
    dynamic_shapes = {
        name: {axis: dimensions[size] for axis, size in enumerate(entry.shape) if isinstance(size, str)}
        for name, entry in spec.inputs.items()
    }
    with quiet():
        try:
            program = torch.onnx.export(
                spec.module,
                (),
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                output_names=list(spec.outputs),
                custom_translation_table=FUSABLE,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"{spec.role} cannot be traced: {one_line(error)}") from error
    if program is None:
        raise ExportError(f"{spec.role} cannot be traced: the exporter returned nothing")
    model: ir.Model = program.model
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself (packages that are not installed, deprecations) off the terminal."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)


def fold_constants(model: ir.Model, weights: set[str]) -> None:
    """Compute what depends on neither inputs nor weights, and drop what is then not needed.

    Left to ONNX Runtime, a part of it would stay: it has no kernel for ``CastLike``, with which the exporter builds
    its constants.
    """

    def may_fold(node: ir.Node) -> bool | None:  # None leaves it to the optimiser
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    common.ShapeInferencePass()(model)
    simplify_reshapes(model)
    transpose_weights(model, weights)
    optimizer.fold_constants_ir(model, should_fold=may_fold)
    for tidy in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        tidy(model)


def remove_traces(model: ir.Model) -> None:
    """Remove the exporter's notes: stack traces with paths, signatures, and shapes that every engine infers anew."""
    common.ClearMetadataAndDocStringPass()(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.type = value.shape = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        if value.const_value is not None:  # whose shape inference could not always name
            value.shape = ir.Shape(value.const_value.shape.numpy())


def declare_shapes(values: Sequence[ir.Value], shapes: Mapping[str, Shape], role: str) -> None:
    """Give inputs or outputs the shapes of their spec, after seeing that the graph agrees.

    Raises:
        ExportError: another name, another order, or a dimension that is fixed in one and dynamic in the other.
    """
    if [value.name for value in values] != list(shapes):
        raise ExportError(f"{role} came out with {[value.name for value in values]} where {list(shapes)} was asked for")
    for value, shape in zip(values, shapes.values(), strict=True):
        traced = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        fixed = [size if isinstance(size, int) else None for size in traced]
        if fixed != [size if isinstance(size, int) else None for size in shape]:
            raise ExportError(f"{role}: {value.name} came out as {traced} where {list(shape)} was asked for")
        value.shape = ir.Shape(shape)


def describe(value: ir.Value) -> dict[str, object]:
    """Name, dtype and shape of an input or output, as the manifest has them."""
    assert value.dtype is not None
    assert value.shape is not None
    shape = [size if isinstance(size, int) else str(size.value) for size in value.shape]
    return {"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape}


def locate_weights(module: nn.Module, path: Path) -> dict[str, dict[str, object]]:
    """Find every weight of a module in a written file, by name and then by value, bit for bit.

    Buffers of whole numbers (batch normalisation counts its batches) take no part in the result and need not be there.

    Raises:
        ExportError: a weight is missing or has another value, which would make the manifest's map a lie.
    """
    stored = ir.load(path).graph.initializers
    located: dict[str, dict[str, object]] = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        constant = stored[name].const_value if name in stored else None
        if constant is None:
            raise ExportError(f"{path.name} holds no initializer {name}; the exporter renamed or folded that weight")
        mine, theirs = tensor.numpy(force=True), constant.numpy()
        transposed = not np.array_equal(mine, theirs, equal_nan=True)
        if transposed and not (mine.ndim == 2 and np.array_equal(mine.T, theirs, equal_nan=True)):
            raise ExportError(f"{path.name}: initializer {name} does not have the value of that weight")
        located[name] = {"name": name, "transposed": transposed}
    return located
