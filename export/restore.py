"""Weights back out of a bundle: the module in PyTorch that a graph was made from, without its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.bundle import digest
from export.ddpm import FAMILY
from export.errors import ExportError
from export.graphs import GraphSpec, class_conditional_unet
from runtime.bundle import Bundle, File, GraphVariant, open_bundle
from training.checkpoint import fill, one_line
from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet


def torch_module(folder: Path, role: str = "unet", variant: str = "fp32") -> nn.Module:
    """The module of a graph, in evaluation mode, with the graph's own weights.

    Args:
        folder: the bundle.
        role: which graph.
        variant: which variant of it.

    Raises:
        BundleError: the bundle is missing or damaged, or has no such graph.
        ExportError: the weights do not fit the training configuration in the manifest.
    """
    return restore(open_bundle(folder), role, variant).module


def restore(bundle: Bundle, role: str, variant: str) -> GraphSpec:
    """The spec that a graph was made from; raises as ``torch_module``."""
    if bundle.family != FAMILY or role != "unet":
        raise ExportError(
            f"{bundle.folder}: {role} of a {bundle.family} cannot be rebuilt; only unet of a {FAMILY} can"
        )
    graph = bundle.graph(role, variant)
    config = training_config(bundle)
    with torch.device("meta"):  # no memory is taken for sizes that the weights do not have
        network = ClassConditionalUNet(config.model)
    load_weights(network, read_weights(bundle, graph), bundle.path(graph.file))
    return class_conditional_unet(network, config.schedule.num_train_timesteps)


def training_config(bundle: Bundle) -> TrainConfig:
    """The training configuration in the manifest's provenance."""
    training = bundle.provenance["training"]
    try:
        return TrainConfig.from_json(json.dumps(training["config"]))
    except (TypeError, KeyError, ValueError) as error:
        raise ExportError(f"{bundle.folder}: provenance.training holds no training configuration ({error})") from error


def read_weights(bundle: Bundle, graph: GraphVariant) -> dict[str, Tensor]:
    """The weights of a graph by their names in the state dict, after the hashes of its files have been checked."""
    for file in (graph.file, *graph.external_data):
        verify(bundle, file)
    path = bundle.path(graph.file)
    try:
        stored = ir.load(path).graph.initializers
    except Exception as error:  # those of protobuf and onnx_ir have no base class in common
        raise ExportError(f"{path} is not an ONNX file ({one_line(error)})") from error
    weights = {}
    for name, place in graph.initializers.items():
        constant = stored[place.name].const_value if place.name in stored else None
        if constant is None:
            raise ExportError(f"{path} holds no initializer {place.name}, where the manifest places {name}")
        if isinstance(constant, ir.ExternalTensor) and constant.location not in {
            file.name for file in graph.external_data
        }:
            raise ExportError(f"{path}: {place.name} lies in {constant.location}, which the manifest does not name")
        array = constant.numpy()
        weights[name] = torch.from_numpy((array.T if place.transposed else array).copy())
    return weights


def verify(bundle: Bundle, file: File) -> None:
    """Compare a file's SHA-256 with the manifest's, without holding the file in memory."""
    path = bundle.path(file)
    if digest(path) != file.sha256:
        raise ExportError(
            f"{path} does not have the SHA-256 of the manifest; it was altered or damaged: export it again"
        )


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Give a module made on the meta device its weights, no more and no fewer than it has.

    Whole numbers, with which batch normalisation counts its batches, are not in a graph and begin at zero.
    """
    entries = module.state_dict().items()
    counts = {
        name: torch.zeros_like(tensor, device="cpu") for name, tensor in entries if not tensor.is_floating_point()
    }
    try:
        fill(module, weights | counts)
    except RuntimeError as error:
        raise ExportError(
            f"{path} does not hold the weights of its training configuration: {one_line(error)}"
        ) from error
