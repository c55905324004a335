"""The two networks that learn together, text encoder and UNet, and how they start.

Shapes: B batch, Z latent channels, h w latents, L tokens, D width of the text embeddings.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.layers import ResnetBlock2D
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.transformer import Transformer2DModel
from training.stable_diffusion.unet import UNet2DConditionModel

TABLE = "text_model.embeddings.token_embedding.weight"


class Texts(nn.Module):
    """The text encoder while it learns.

    Its table has rows for the tokens of its world alone, some two hundred of 49,408. The others never change, and their
    gradients, moments and averages would take a tenth of every step.
    """

    no_extra: Tensor
    no_skip: Tensor
    rows: Tensor

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__()
        self.vocab_size, known = config.text_encoder.vocab_size, tokens.known_token_ids()
        self.text_encoder = CLIPTextModel(replace(config.text_encoder, vocab_size=len(known)))
        # Tokens that no caption has find themselves behind the table, where the encoder takes an extra embedding: 0.
        rows = torch.full((self.vocab_size,), len(known))
        rows[known] = torch.arange(len(known))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("no_extra", torch.zeros(1, config.text_encoder.hidden_size), persistent=False)
        self.register_buffer("no_skip", torch.zeros((), dtype=torch.int64), persistent=False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D), in float32 whatever autocast says: gradients in bfloat16 take twice as long on a CPU."""
        with torch.autocast(input_ids.device.type, enabled=False):
            embeddings: Tensor = self.text_encoder(self.rows[input_ids], self.no_extra, self.no_skip)
        return embeddings


class Denoiser(Texts):
    """Text encoder and UNet as one network."""

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__(config)
        self.unet = UNet2DConditionModel(config.unet)

    def forward(self, sample: Tensor, timestep: Tensor, input_ids: Tensor) -> Tensor:
        """(B, Z, h, w), (B,), (B, L) -> (B, Z, h, w)."""
        prediction: Tensor = self.unet(sample, timestep, self.embed(input_ids))
        return prediction

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights of "text_encoder" and "unet", the table with all its rows; those that never learned are 0."""
        text_encoder = self.text_encoder.state_dict()
        learned = text_encoder[TABLE]
        text_encoder[TABLE] = learned.new_zeros(self.vocab_size, learned.shape[1])
        text_encoder[TABLE][tokens.known_token_ids()] = learned
        return {"text_encoder": text_encoder, "unet": self.unet.state_dict()}


@torch.no_grad()
def initialise_texts(network: Texts) -> None:
    """Start with faint words, as CLIP does."""
    embeddings = network.text_encoder.text_model.embeddings
    embeddings.token_embedding.weight.normal_(std=0.05)
    embeddings.position_embedding.weight.normal_(std=0.01)


@torch.no_grad()
def initialise_unet(network: Denoiser) -> None:
    """Start so that every block of the UNet passes its input on, and the prediction is 0."""
    for module in network.unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, Transformer2DModel):
            module.proj_out.weight.zero_()
    network.unet.conv_out.weight.zero_()
