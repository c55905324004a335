"""The three networks together: made without weights, then given those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.errors import CheckpointError
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.unet import UNet2DConditionModel
from training.stable_diffusion.vae import AutoencoderKL

LISTED = 3  # how many tensors a message names before it counts the rest


class Networks(nn.Module):
    """Text encoder, UNet and VAE; a state dict's names begin with which of them."""

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(config.text_encoder)
        self.unet = UNet2DConditionModel(config.unet)
        self.vae = AutoencoderKL(config.vae)


def without_weights(config: StableDiffusionConfig) -> Networks:
    """Networks on the meta device: shapes, but no memory."""
    with torch.device("meta"):
        return Networks(config)


def fill(networks: Networks, source: str, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Give the networks their weights, in float32 and evaluation mode.

    Weights in float32 are used where they lie, so those of a mapped file stay in the file.

    Args:
        networks: as ``without_weights`` makes them.
        source: where the tensors are from, for messages.
        names: name in the state dict -> name in the source.
        tensors: the source's tensors by their names there.

    Raises:
        CheckpointError: tensors are missing, unknown or of the wrong shape: one message for all of them.
    """
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    for key, wanted in networks.state_dict().items():
        name = names[key]
        if name not in tensors:
            missing.append(name)
        elif (tensor := fitted(tensors[name], wanted.shape)) is None:
            misshapen.append(f"{name}, {description(tensors[name])} where {list(wanted.shape)} is needed")
        else:
            state[key] = tensor
    unknown = sorted(tensors.keys() - set(names.values()))
    problems = [
        summary(kind, found)
        for kind, found in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if found
    ]
    if problems:
        raise CheckpointError(f"{source} does not hold the {len(names)} tensors of this model: {', '.join(problems)}")
    networks.load_state_dict(state, assign=True)
    networks.float().eval().requires_grad_(False)


def fitted(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor in the wanted shape, or None.

    A 1x1 convolution and a linear layer hold the same numbers, and files differ in which of the two they had.
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return None
    same = tensor.shape in (shape, (*shape, 1, 1)) or (*tensor.shape, 1, 1) == shape
    return tensor.reshape(shape).contiguous() if same else None


def summary(kind: str, found: list[str]) -> str:
    """A problem in a few words: the first few tensors that have it, and how many more."""
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{len(found)} {kind} ({'; '.join(found[:LISTED])}{more})"


def description(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
