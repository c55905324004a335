"""Weights back out of a bundle: the module in PyTorch that a graph was made from, without its checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from export import ddpm, sd15
from export.errors import ExportError
from export.graphs import GraphSpec, class_conditional_unet
from export.sd15_graphs import SPECS, modules
from runtime.bundle import Bundle, File, GraphVariant, open_bundle
from runtime.plan import NoiseSchedule
from training import configuration
from training.checkpoint import fill, one_line
from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet
from training.paths import file_sha256
from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.config import StableDiffusionConfig

Config = TypeVar("Config", TrainConfig, StableDiffusionConfig)


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
    graph = bundle.graph(role, variant)
    weights = read_weights(bundle, graph)
    if bundle.family == ddpm.FAMILY:
        config = training_config(bundle)
        with torch.device("meta"):  # no memory is taken for sizes that the weights do not have
            network = ClassConditionalUNet(config.model)
        load_weights(network, weights, bundle.path(graph.file))
        return class_conditional_unet(network, config.schedule.num_train_timesteps)
    sizes = stable_diffusion_config(bundle)
    networks = without_weights(sizes)
    module = modules(networks.text_encoder, networks.unet, networks.vae)[role]
    load_weights(module, weights, bundle.path(graph.file))
    return SPECS[role](module, sizes)


def training_config(bundle: Bundle) -> TrainConfig:
    """The training configuration in the manifest's provenance."""
    return provenance_config(bundle, TrainConfig)


def stable_diffusion_config(bundle: Bundle) -> StableDiffusionConfig:
    """The sizes and the noise schedule in the manifest's provenance."""
    return provenance_config(bundle, StableDiffusionConfig)


def provenance_config(bundle: Bundle, kind: type[Config]) -> Config:
    """The configuration in the manifest's provenance.

    Raises:
        ExportError: there is none of this kind.
    """
    try:
        return configuration.build(kind, bundle.provenance["training"]["config"])
    except (TypeError, KeyError, ValueError) as error:
        raise ExportError(f"{bundle.folder}: provenance.training holds no training configuration ({error})") from error


def noise_schedule(bundle: Bundle) -> NoiseSchedule:
    """The noise schedule of the configuration in the manifest's provenance."""
    if bundle.family == ddpm.FAMILY:
        return ddpm.noise_schedule(training_config(bundle))
    return sd15.noise_schedule(stable_diffusion_config(bundle).scheduler)


def read_weights(bundle: Bundle, graph: GraphVariant) -> dict[str, Tensor]:
    """The weights of a graph by their names in the state dict, after the hashes of its files have been checked.

    They are not copied: those that lie beside the graph stay in their file, mapped into memory.
    """
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
        array = numbers(constant, path, place.name)
        with warnings.catch_warnings(action="ignore"):  # torch cannot know that nobody will write to them
            weights[name] = torch.from_numpy(array.T if place.transposed else array)
    return weights


def numbers(constant: ir.TensorProtocol, path: Path, name: str) -> npt.NDArray[Any]:
    """The floating-point numbers of an initializer.

    Raises:
        ExportError: they are of another kind, or the file does not hold as many as it says.
    """
    if constant.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise ExportError(f"{path}: {name} is {constant.dtype}; weights are FLOAT or FLOAT16")
    try:
        return constant.numpy()
    except Exception as error:  # onnx_ir's own, NumPy's, and those of mapping a file
        raise ExportError(f"{path}: {name} cannot be read ({one_line(error)})") from error


def verify(bundle: Bundle, file: File) -> None:
    """Compare a file's SHA-256 with the manifest's, without holding the file in memory."""
    path = bundle.path(file)
    if file_sha256(path) != file.sha256:
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
