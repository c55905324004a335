"""The two networks that learn together, text encoder and UNet, and how they start.

Shapes: B batch, Z latent channels, h w latents, L tokens, D width of the text embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.layers import ResnetBlock2D
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.transformer import Transformer2DModel
from training.stable_diffusion.unet import UNet2DConditionModel


class Denoiser(nn.Module):
    """Text encoder and UNet as one network."""

    no_extra: Tensor
    no_skip: Tensor

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(config.text_encoder)
        self.unet = UNet2DConditionModel(config.unet)
        self.register_buffer("no_extra", torch.zeros(1, config.text_encoder.hidden_size), persistent=False)
        self.register_buffer("no_skip", torch.zeros((), dtype=torch.int64), persistent=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        embeddings: Tensor = self.text_encoder(input_ids, self.no_extra, self.no_skip)
        return embeddings

    def forward(self, sample: Tensor, timestep: Tensor, input_ids: Tensor) -> Tensor:
        """(B, Z, h, w), (B,), (B, L) -> (B, Z, h, w)."""
        prediction: Tensor = self.unet(sample, timestep, self.embed(input_ids))
        return prediction


@torch.no_grad()
def initialise(network: Denoiser) -> None:
    """Start so that every block of the UNet passes its input on and the prediction is 0; and tokens that no caption
    has, which will never learn, at 0, so that they say nothing."""
    for module in network.unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Transformer2DModel):
            module.proj_out.weight.zero_()
    network.unet.conv_out.weight.zero_()
    embeddings = network.text_encoder.text_model.embeddings
    known = tokens.known_token_ids()
    drawn = 0.05 * torch.randn(len(known), embeddings.token_embedding.embedding_dim)
    embeddings.token_embedding.weight.zero_()[known] = drawn
    embeddings.position_embedding.weight.normal_(std=0.01)
