"""Random weights that are as hard on an implementation as trained ones.

Norms are away from 1 and biases from 0, so that none can be forgotten unnoticed; outputs have the scale they have in
trained models; and a few channels of the text encoder are a hundred times larger than the others, as CLIP's are.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.config import StableDiffusionConfig, TextEncoderConfig, UNetConfig, UNetLevel, VAEConfig

POCKET = StableDiffusionConfig(
    text_encoder=TextEncoderConfig(
        vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4
    ),
    unet=UNetConfig(
        levels=(UNetLevel(16, True), UNetLevel(32, True), UNetLevel(48, False)),
        num_attention_heads=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    vae=VAEConfig(block_out_channels=(16, 24, 32), layers_per_block=1, norm_num_groups=8),
)
"""Every size differs from its neighbours', so that none can stand in for another: three levels, two with attention."""

SMALLEST = StableDiffusionConfig(
    text_encoder=TextEncoderConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ),
    unet=UNetConfig(
        levels=(UNetLevel(8, True), UNetLevel(16, False)),
        layers_per_block=1,
        num_attention_heads=4,
        cross_attention_dim=8,
        norm_num_groups=4,
    ),
    vae=VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4),
)
"""For tests of files, which care about names and shapes only."""

# Factors on what the rules below give, so that outputs come out at the scale of trained models.
OUTPUT_SCALES = {
    "unet.conv_out.weight": 1.7,  # noise of unit scale
    "vae.decoder.conv_out.weight": 0.8,  # pixels in [-1, 1]
    "vae.quant_conv.weight": 8.0,  # latents before the scaling factor
}
OUTLIERS = 3  # channels


def random_state(config: StableDiffusionConfig) -> dict[str, Tensor]:
    """A state dict for ``Networks`` of these sizes; the same at every call."""
    return {name: random_tensor(name, wanted.shape) for name, wanted in without_weights(config).state_dict().items()}


def random_tensor(name: str, shape: torch.Size) -> Tensor:
    """Weights of variance 1 / inputs, norms' 0.2 to 0.5 away from 1, biases 0.1 to 0.3 away from 0, and scales."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if len(shape) > 1:
        inputs = 4 if "embedding.weight" in name else math.prod(shape[1:])
        return torch.randn(shape, generator=generator).mul_(OUTPUT_SCALES.get(name, 1.0) / math.sqrt(inputs))
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    size = torch.rand(shape, generator=generator)
    if name.endswith(".weight"):
        weight = 1 + sign * (0.2 + 0.3 * size)
        return scale_outliers(weight, 10.0) if "final_layer_norm" in name else weight
    bias = sign * (0.1 + 0.2 * size)
    return scale_outliers(bias, 100.0) if ".mlp.fc2." in name else bias


def scale_outliers(tensor: Tensor, factor: float) -> Tensor:
    tensor[:: max(1, len(tensor) // OUTLIERS)] *= factor
    return tensor
