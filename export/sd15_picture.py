"""What a text-to-image bundle should draw: the words, the picture, in PyTorch and by formulas of its own.

Nothing of the runtime is used here but its noise, so that agreement with the runtime is evidence.

Shapes: B = 1 image, L tokens, D width of the text embeddings, C channels, H W pixels, h w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from export.conformance import PICTURE_TOLERANCE, Array, Conformance, to_uint8
from export.tokenizer import TextTokenizer
from runtime.noise import noise_generator
from runtime.plan import Plan
from training.ddpm.sampler import sample_ddim
from training.stable_diffusion.checkpoint import StableDiffusion

SAMPLER, STEPS = "ddim", 4
SEED = 0
LATENTS = 16  # a side
PROMPT, NEGATIVE_PROMPT = "a photograph of an astronaut riding a horse", "blurry"
PROMPTS = (
    "",
    PROMPT,
    "A Red CIRCLE, above   a blue square!",
    "it's naïve: 100% of 東京 in 24 hours?",
    "a cat 😀 and a 🐈‍⬛",
    "one of very many words, " * 20,  # more than fit
)


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        sample: the last latents, float32 (1, C, h, w).
        image: uint8 (1, H, W, 3).
    """

    sample: Array
    image: Array


def add_tokens(conformance: Conformance, tokenizer: TextTokenizer, max_length: int) -> None:
    """What prompts become."""
    for prompt in PROMPTS:
        conformance.add_tokens(prompt, tokenizer.encode(prompt, max_length))


def add_picture(
    conformance: Conformance,
    model: StableDiffusion,
    tokenizer: TextTokenizer,
    plans: Mapping[str, Plan],
    guidance_scale: float,
) -> None:
    """One small picture, of a model whose UNet is given nothing but latents and text."""
    name = f"{SAMPLER}-{min(STEPS, len(model.config.scheduler.alphas_cumprod))}"
    picture = draw(model, tokenizer, [int(timestep) for timestep in plans[name].timesteps], guidance_scale)
    side = LATENTS * model.config.vae.factor
    conformance.add_picture(
        name,
        guidance_scale,
        SEED,
        picture.sample,
        picture.image,
        # Errors grow with what they are errors of, which has unit scale only where the model was trained.
        tolerance=PICTURE_TOLERANCE * max(1.0, float(abs(picture.sample).max())),
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=side,
        height=side,
    )


@torch.no_grad()
def draw(model: StableDiffusion, tokenizer: TextTokenizer, timesteps: list[int], guidance_scale: float) -> Picture:
    """Draw ``PROMPT`` by DDIM, from the bundle's noise."""
    scheduler, vae = model.config.scheduler, model.config.vae
    noise = noise_generator("philox", SEED).draw((vae.latent_channels, LATENTS, LATENTS))
    *_, sample = sample_ddim(
        text_guided(model, tokenizer, guidance_scale),
        scheduler,
        torch.from_numpy(noise)[None],
        timesteps,
        prediction_type=scheduler.prediction_type,
        final_alpha_cumprod=scheduler.final_alpha_cumprod,
    )
    decoded = model.vae.decode(sample / vae.scaling_factor)
    return Picture(sample.numpy(), to_uint8(decoded))


def text_guided(
    model: StableDiffusion, tokenizer: TextTokenizer, guidance_scale: float
) -> Callable[[Tensor, int], Tensor]:
    """The prediction away from ``NEGATIVE_PROMPT`` and towards ``PROMPT`` (Ho & Salimans 2022, eq. 6, s = w + 1)."""
    text = model.config.text_encoder
    ids = [tokenizer.encode(prompt, text.max_position_embeddings) for prompt in (NEGATIVE_PROMPT, PROMPT)]
    nothing_extra, no_skip = torch.zeros(1, text.hidden_size), torch.tensor(0)
    uncond, cond = (model.text_encoder(torch.from_numpy(i)[None], nothing_extra, no_skip) for i in ids)  # (1, L, D)

    def predict(sample: Tensor, timestep: int) -> Tensor:
        time = torch.full((1,), float(timestep))
        away, towards = model.unet(sample, time, uncond), model.unet(sample, time, cond)
        guided: Tensor = away + guidance_scale * (towards - away)
        return guided

    return predict
