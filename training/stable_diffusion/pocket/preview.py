"""A sheet of pictures, each above the prompt that it was drawn for."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.arrays import UInt8
from training.ddpm.sampler import sample_ddim
from training.randomness import generator
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.pocket.autoencoder import to_pixels
from training.stable_diffusion.pocket.config import IMAGE_SIZE
from training.stable_diffusion.vae import AutoencoderKL

PROMPTS = (
    "a red sneaker on a white background",
    "the digit seven in yellow on blue",
    "a green dress",
    "a white bag on black",
    "a black t-shirt on an orange background",
    "a small pink 3 in the top left corner on purple",
    "a large blue pullover on a yellow background",
    "brown trousers on grey",
    "an ankle boot on the right on pink",
    "a white t-shirt in the lower left corner on red",
    "a red sandal above the digit five",
    "a yellow zero to the left of a blue bag on black",
    "a green 4 and a purple 9 on a white background",
    "a blue sneaker on the left and an orange dress on the right on white",
    "something red",
    "",
)
COLUMNS = 4
ENLARGED = 3  # times
LINE = 14  # pixels for a line of the prompt
GAP = 6
STEPS, GUIDANCE = 20, 4.0


class PromptedDenoiser(Protocol):
    """Text encoder and UNet."""

    def embed(self, input_ids: Tensor) -> Tensor: ...

    @property
    def unet(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]: ...


@torch.no_grad()
def prompt_sheet(denoiser: PromptedDenoiser, vae: AutoencoderKL, config: StableDiffusionConfig, seed: int) -> Tensor:
    """Draw ``PROMPTS``, from the same noise at every call: uint8 (3, H, W)."""
    device = next(vae.parameters()).device
    side = IMAGE_SIZE // config.vae.factor
    shape = (len(PROMPTS), config.vae.latent_channels, side, side)
    start = torch.randn(shape, generator=generator(seed, "preview", 0)).to(device)
    latents = sample(denoiser, config, start, PROMPTS)
    pictures = to_pixels(vae.decode(latents / config.vae.scaling_factor)).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(sheet(pictures, PROMPTS)).permute(2, 0, 1)


def sample(denoiser: PromptedDenoiser, config: StableDiffusionConfig, start: Tensor, prompts: Sequence[str]) -> Tensor:
    """Guided DDIM from noise to latents, both (B, Z, h, w)."""
    embeddings = denoiser.embed(tokens.encode([""] * len(prompts) + list(prompts)).to(start.device))

    def predict(sample: Tensor, timestep: int) -> Tensor:
        times = sample.new_full((2 * len(sample),), timestep)
        uncond, cond = denoiser.unet(torch.cat([sample, sample]), times, embeddings).chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    last = config.scheduler.noise_schedule.num_train_timesteps
    timesteps = [round(last - i * last / STEPS) - 1 for i in range(STEPS)]  # trailing
    kind = config.scheduler.prediction_type
    *_, latents = sample_ddim(predict, config.scheduler, start, timesteps, prediction_type=kind)
    return latents


def sheet(pictures: UInt8, prompts: Sequence[str]) -> UInt8:
    """Pictures, uint8 (N, H, W, 3), with their prompts below them, in rows of ``COLUMNS``."""
    side = ENLARGED * pictures.shape[1]
    width, height = side + GAP, side + 2 * LINE + GAP
    page = Image.new("RGB", (COLUMNS * width + GAP, -(-len(prompts) // COLUMNS) * height + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LINE - 2)
    for number, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * width, GAP + row * height
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(textwrap.wrap(prompt or "(no prompt)", side // (LINE // 2 - 1))[:2]):
            pen.text((left, top + side + line * LINE), text, "black", font)
    return np.array(page)
