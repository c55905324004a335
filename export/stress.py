"""Inputs that are harder than any in use, to find the largest values that a network ever forms (``export.survey``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.graphs import GraphSpec
from export.survey import Array

SEED = 0
# Latents at five standard deviations, in the VAE's own units: 5 / scaling_factor.
LATENT = 5 / 0.18215
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


CASES: Mapping[str, tuple[Mapping[str, Change], ...]] = {
    # Samples have unit scale at every noise level; four times that is beyond what any guidance scale makes of them.
    "unet": (
        {"timestep": full(999), "encoder_hidden_states": outliers},
        {"timestep": full(999), "encoder_hidden_states": outliers, "sample": times(4)},
        {"timestep": full(500), "encoder_hidden_states": outliers, "sample": full(4)},
        {"timestep": full(250), "encoder_hidden_states": times(4), "sample": stripes(4)},
        {"timestep": full(0), "encoder_hidden_states": outliers, "sample": times(4)},
    ),
    "vae_encoder": ({}, {"sample": signs(1)}, {"sample": stripes(1)}, {"sample": full(1)}, {"sample": full(-1)}),
    "vae_decoder": (
        {"latent_sample": signs(LATENT)},
        {"latent_sample": stripes(LATENT)},
        {"latent_sample": full(LATENT)},
        {"latent_sample": full(-LATENT)},
    ),
    "text_encoder": ({}, {}, {"extra_embeddings": outliers}, {"input_ids": repeated}),
}


def stress_inputs(spec: GraphSpec, sizes: Mapping[str, int], seed: int = SEED) -> list[dict[str, Array]]:
    """Draw the inputs of a survey; those that no case speaks of are as in use.

    Args:
        spec: the graph, of a role in ``CASES``.
        sizes: the dynamic dimensions: such as the graph is mostly used at, and a batch of 1, since samples of a batch
            do not meet. Half the usual sides will do for the VAE, since magnitudes hardly depend on them.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for case in CASES[spec.role]:
        drawn = spec.draw(sizes, generator)
        changed = {name: case[name](tensor) if name in case else tensor for name, tensor in drawn.items()}
        samples.append({name: tensor.numpy() for name, tensor in changed.items()})
    return samples
