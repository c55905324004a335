"""The four graphs of Stable Diffusion 1.5.

Shapes: B batch, L tokens, D width of the text embeddings, K extra embeddings, C channels, H W pixels, h w latents
(H / factor, W / factor).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from export.graphs import Draw, GraphSpec, Input, Shape, Sizes, chosen, normal, uniform
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.text_encoder import CLIPTextModel
from training.stable_diffusion.unet import UNet2DConditionModel
from training.stable_diffusion.vae import AutoencoderKL

TEXT_ENCODER, UNET, VAE_ENCODER, VAE_DECODER = "text_encoder", "unet", "vae_encoder", "vae_decoder"
VAE_TOLERANCE = 3e-5
EXTRA_EVERY = 5  # of the tokens that parity is measured with, one in so many is an extra one


class Encode(nn.Module):
    """``AutoencoderKL.encode`` as a module; its weights have the names that they have there."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        latent_parameters: Tensor = self.quant_conv(self.encoder(sample))
        return latent_parameters


class Decode(nn.Module):
    """``AutoencoderKL.decode`` as a module; its weights have the names that they have there."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        sample: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return sample


def modules(text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL) -> dict[str, nn.Module]:
    """What is traced, by role.

    The UNet comes last: it takes more memory than all others, and gets what they have let go of.
    """
    return {TEXT_ENCODER: text_encoder, VAE_ENCODER: Encode(vae), VAE_DECODER: Decode(vae), UNET: unet}


def text_encoder_spec(module: nn.Module, config: StableDiffusionConfig) -> GraphSpec:
    text = config.text_encoder
    longest = text.max_position_embeddings
    skipping = min(1, text.num_hidden_layers)
    return GraphSpec(
        role=TEXT_ENCODER,
        module=module,
        inputs={
            "input_ids": Input(("batch", "length"), token_ids(text.vocab_size)),
            "extra_embeddings": Input(("extra", text.hidden_size), normal),
            "clip_skip": Input((), chosen("clip_skip")),
        },
        outputs={"last_hidden_state": ("batch", "length", text.hidden_size)},
        example_sizes={"batch": 2, "length": longest - 1, "extra": 3, "clip_skip": 0},  # every layer has its part
        parity_sizes=(
            {"batch": 1, "length": longest, "extra": 1, "clip_skip": 0},
            {"batch": 2, "length": longest, "extra": 4, "clip_skip": skipping},
            {"batch": 2, "length": min(11, longest), "extra": 2, "clip_skip": text.num_hidden_layers},
        ),
        half_cases=(0, 1),  # the last one skips every layer
        channel_axis=-1,
        largest_sizes={"length": longest},
    )


def token_ids(vocab_size: int) -> Draw:
    """Ids of tokens, int64; here and there one of the extra ones of the case, whose ids follow those of all others."""

    def draw(shape: tuple[int, ...], generator: torch.Generator, sizes: Sizes) -> Tensor:
        known = torch.randint(0, vocab_size, shape, generator=generator)
        extra = torch.randint(vocab_size, vocab_size + sizes["extra"], shape, generator=generator)
        return torch.where(torch.randint(0, EXTRA_EVERY, shape, generator=generator) == 0, extra, known)

    return draw


def unet_spec(module: nn.Module, config: StableDiffusionConfig) -> GraphSpec:
    unet, length = config.unet, config.text_encoder.max_position_embeddings
    last = config.scheduler.noise_schedule.num_train_timesteps - 1
    return GraphSpec(
        role=UNET,
        module=module,
        inputs={
            "sample": Input(("batch", unet.in_channels, "h", "w"), normal),
            "timestep": Input(("batch",), uniform(0, last)),
            "encoder_hidden_states": Input(("batch", "length", unet.cross_attention_dim), normal),
        },
        outputs={"out_sample": ("batch", unet.out_channels, "h", "w")},
        example_sizes={"batch": 2, "h": 18, "w": 14, "length": length},
        parity_sizes=(
            {"batch": 1, "h": 64, "w": 64, "length": 3 * length},
            {"batch": 2, "h": 48, "w": 80, "length": length},
            {"batch": 1, "h": 65, "w": 63, "length": length},
        ),
    )


def vae_encoder_spec(module: nn.Module, config: StableDiffusionConfig) -> GraphSpec:
    vae = config.vae

    def sizes(batch: int, h: int, w: int) -> Sizes:
        return {"batch": batch, "height": h * vae.factor, "width": w * vae.factor}

    return GraphSpec(
        role=VAE_ENCODER,
        module=module,
        inputs={"sample": Input(("batch", vae.in_channels, "height", "width"), uniform(-1, 1))},
        outputs={"latent_parameters": ("batch", 2 * vae.latent_channels, "h", "w")},
        example_sizes=sizes(2, 9, 11),
        parity_sizes=(sizes(1, 64, 64), sizes(1, 48, 80), sizes(1, 65, 63), sizes(2, 13, 11)),
        tolerance=VAE_TOLERANCE,
    )


def vae_decoder_spec(module: nn.Module, config: StableDiffusionConfig) -> GraphSpec:
    vae = config.vae

    def latents(shape: tuple[int, ...], generator: torch.Generator, sizes: Sizes) -> Tensor:
        return normal(shape, generator, sizes) / vae.scaling_factor

    shape: Shape = ("batch", vae.latent_channels, "h", "w")
    return GraphSpec(
        role=VAE_DECODER,
        module=module,
        inputs={"latent_sample": Input(shape, latents)},
        outputs={"sample": ("batch", vae.out_channels, "height", "width")},
        example_sizes={"batch": 2, "h": 9, "w": 11},
        parity_sizes=(
            {"batch": 1, "h": 64, "w": 64},
            {"batch": 1, "h": 48, "w": 80},
            {"batch": 1, "h": 65, "w": 63},
            {"batch": 2, "h": 13, "w": 11},
        ),
        tolerance=VAE_TOLERANCE,
    )


SPECS: dict[str, Callable[[nn.Module, StableDiffusionConfig], GraphSpec]] = {
    TEXT_ENCODER: text_encoder_spec,
    UNET: unet_spec,
    VAE_ENCODER: vae_encoder_spec,
    VAE_DECODER: vae_decoder_spec,
}
"""By role: from what is traced, one of ``modules``, and the sizes of the whole model, to the spec."""


def stress_sizes(role: str, config: StableDiffusionConfig) -> Sizes:
    """The dynamic dimensions at which to look for values that fp16 could not hold.

    The UNet at the sides it is mostly used at; half of them for the VAE, whose values hardly depend on them.
    """
    side, length = 32, config.text_encoder.max_position_embeddings
    sizes: dict[str, Sizes] = {
        TEXT_ENCODER: {"batch": 1, "length": length, "extra": 1, "clip_skip": 0},
        UNET: {"batch": 1, "h": 2 * side, "w": 2 * side, "length": length},
        VAE_ENCODER: {"batch": 1, "height": side * config.vae.factor, "width": side * config.vae.factor},
        VAE_DECODER: {"batch": 1, "h": side, "w": side},
    }
    return sizes[role]
