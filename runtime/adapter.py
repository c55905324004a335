"""Graphs that others exported, used as if they were ours.

diffusers and optimum name the same tensors and type them otherwise: ``timestep`` may be a vector of floats or one
int64, ids may be int32, and the text encoder has neither ``extra_embeddings`` nor ``clip_skip``. Here values of the
contract (``docs/bundle.md``) become what such a graph takes, and its outputs become the contract's, so that nothing
else has to know whose graph it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle import GraphVariant, TensorSpec
from runtime.errors import RequestError

Array = npt.NDArray[Any]
Tensors = tuple[TensorSpec, ...]

# The log-variance that stands for no variance at all.
NO_VARIANCE = -30.0


@dataclass(frozen=True)
class ForeignGraph(GraphVariant):
    """A graph whose ``inputs`` and ``outputs`` are the contract's and whose own differ.

    Attributes:
        native_inputs: the file's own; each has the name of one of the contract's.
        native_output: which of the file's is the contract's one output.
    """

    native_inputs: Tensors
    native_output: str


def native_outputs(graph: GraphVariant) -> list[str]:
    """Which of the file's outputs are asked for."""
    return [graph.native_output if isinstance(graph, ForeignGraph) else spec.name for spec in graph.outputs]


def adapted_inputs(graph: GraphVariant, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph takes, made of the contract's inputs.

    Raises:
        RequestError: the graph lacks an input that matters to this request.
    """
    if not isinstance(graph, ForeignGraph):
        return dict(inputs)
    name = graph.file.name
    if "clip_skip" in inputs and int(inputs["clip_skip"]) != 0:
        raise RequestError(f"clip_skip is {int(inputs['clip_skip'])}; {name} comes from elsewhere and can only take 0")
    if "extra_embeddings" in inputs and np.any(inputs["extra_embeddings"]):
        raise RequestError(f"learned embeddings do not go into {name}, which comes from elsewhere; export it again")
    return {spec.name: adapted(inputs[spec.name], spec, name) for spec in graph.native_inputs if spec.name in inputs}


def adapted(value: Array, spec: TensorSpec, graph: str) -> Array:
    """One input in the dtype and rank that the graph declares."""
    if not spec.shape and value.ndim:
        if (value != value.flat[0]).any():
            raise RequestError(f"{graph} takes one {spec.name} for the whole batch, not {value.tolist()}")
        value = value.reshape(-1)[0]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "i" and value.dtype.kind == "f":
        if (value != np.round(value)).any():
            warnings.warn(
                f"{graph} takes whole timesteps only, so that this sampler's fractions are rounded; "
                "samplers with whole timesteps, such as ddim or pndm, lose nothing",
                stacklevel=2,
            )
        value = np.round(value)
    return np.asarray(value, dtype)


def adapted_outputs(graph: GraphVariant, outputs: dict[str, Array]) -> dict[str, Array]:
    """The contract's outputs, made of the graph's."""
    if not isinstance(graph, ForeignGraph):
        return outputs
    (wanted,) = graph.outputs
    value = np.asarray(outputs[graph.native_output], wanted.dtype)
    if wanted.name == "latent_parameters" and value.shape[1] * 2 == wanted.shape[1]:
        # diffusers draws inside the graph: what comes out is a sample, which has no variance left.
        value = np.concatenate([value, np.full_like(value, NO_VARIANCE)], axis=1)
    return {wanted.name: value}
