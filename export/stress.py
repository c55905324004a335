"""Inputs that are harder than any in use, to find the largest values that a network ever forms (``export.survey``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.graphs import GraphSpec
from export.survey import Array
from training.stable_diffusion.config import StableDiffusionConfig

SEED = 0
LATENT = 5  # standard deviations
# CLIP's last hidden states have a few channels of about 30, everywhere and in every prompt; learned tokens have more.
OUTLIER, OUTLIER_EVERY = 40.0, 256

Change = Callable[[Tensor], Tensor]
"""From numbers such as an input meets in use to harder ones of the same shape."""


def times(factor: float) -> Change:
    return lambda drawn: drawn * factor


def full(value: float) -> Change:
    """One value everywhere: an evenly coloured picture, or a timestep."""
    return lambda drawn: torch.full_like(drawn, value)


def signs(size: float) -> Change:
    """Noise of two values."""
    return lambda drawn: size * (1 - 2 * (drawn < drawn.mean()).float())


def stripes(size: float) -> Change:
    """Two values with hard edges between areas four wide."""

    def change(drawn: Tensor) -> Tensor:
        odd = (torch.arange(drawn.shape[-1]) // 4 % 2).float()
        return (size * (2 * odd - 1)).expand_as(drawn).contiguous()

    return change


def outliers(drawn: Tensor) -> Tensor:
    """A few channels that are far larger than the others, as language models have them."""
    changed = drawn.clone()
    changed[..., ::OUTLIER_EVERY] = OUTLIER
    return changed


def repeated(drawn: Tensor) -> Tensor:
    """The first token all along the row, as padding repeats one."""
    return drawn[:, :1].expand_as(drawn).contiguous()


def cases(role: str, config: StableDiffusionConfig) -> tuple[Mapping[str, Change], ...]:
    """What is changed, by the names of inputs."""
    last = config.scheduler.noise_schedule.num_train_timesteps - 1
    latent = LATENT / config.vae.scaling_factor  # in the VAE's own units
    by_role: dict[str, tuple[Mapping[str, Change], ...]] = {
        # Samples have unit scale at every noise level; four times that is beyond what any guidance scale makes of them.
        "unet": (
            {"timestep": full(last), "encoder_hidden_states": outliers},
            {"timestep": full(last), "encoder_hidden_states": outliers, "sample": times(4)},
            {"timestep": full(last // 2), "encoder_hidden_states": outliers, "sample": full(4)},
            {"timestep": full(last // 4), "encoder_hidden_states": times(4), "sample": stripes(4)},
            {"timestep": full(0), "encoder_hidden_states": outliers, "sample": times(4)},
        ),
        "vae_encoder": ({}, {"sample": signs(1)}, {"sample": stripes(1)}, {"sample": full(1)}, {"sample": full(-1)}),
        "vae_decoder": (
            {"latent_sample": signs(latent)},
            {"latent_sample": stripes(latent)},
            {"latent_sample": full(latent)},
            {"latent_sample": full(-latent)},
        ),
        "text_encoder": ({}, {}, {"extra_embeddings": outliers}, {"input_ids": repeated}),
    }
    return by_role[role]


def stress_inputs(
    spec: GraphSpec, sizes: Mapping[str, int], config: StableDiffusionConfig, seed: int = SEED
) -> list[dict[str, Array]]:
    """Draw the inputs of a survey; those that no case speaks of are as in use.

    Args:
        spec: a graph of Stable Diffusion.
        sizes: the dynamic dimensions: such as the graph is mostly used at, and a batch of 1, since samples of a batch
            do not meet. Half the usual sides will do for the VAE, since magnitudes hardly depend on them.
        config: of the whole model.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for case in cases(spec.role, config):
        drawn = spec.draw(sizes, generator)
        changed = {name: case[name](tensor) if name in case else tensor for name, tensor in drawn.items()}
        samples.append({name: tensor.numpy() for name, tensor in changed.items()})
    return samples
