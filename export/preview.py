"""How a predicted sample looks, for people who wait: a linear map from latents to colours, without the decoder.

One latent is hardly more than the mean colour of the pixels it stands for, and what its channels have to do with red,
green and blue is nearly linear. The map is fitted by least squares to what the decoder makes of latents such as it
meets in use. Random normal latents are none: they decode to noise, whose colours say little about those of pictures. So
pictures of patches are encoded, large and small, with sharp and with soft edges, in colours from all over the cube, and
their latents' decoded pixels are averaged over the area of a latent.

Shapes: B pictures, H W pixels, h w latents (H / factor, W / factor), Z latent channels, N = B · h · w.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.graphs import uniform
from training.stable_diffusion.vae import AutoencoderKL

SEED = 0
SIDE = 8  # in latents: 450 GFLOP for all pictures in a published model, a small part of its parity
PATCHES = (2, 4, 8, 16)  # a side of the picture; the last ones are smaller than what a latent stands for
EDGES = ("nearest", "bilinear")
DECIMALS = 6


def pictures(side: int) -> Tensor:
    """Patches of random colours, float32 (B, 3, side, side) in [-1, 1]; the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = []
    for count in PATCHES:
        for edges in EDGES:
            colours = uniform(-1, 1)((1, 3, count, count), generator, {})
            drawn.append(F.interpolate(colours, (side, side), mode=edges))
    return torch.cat(drawn)


@torch.no_grad()
def fit_preview(vae: AutoencoderKL) -> dict[str, Any] | None:
    """The manifest's ``latents.preview``: Z rows of three weights, and three biases.

    What they give is red, green and blue in [-1, 1], of latents that are multiplied by ``scaling_factor``. None where
    the VAE's numbers are not finite, which the parity of its graphs tells in detail.
    """
    config = vae.config
    means, _ = vae.encode(pictures(SIDE * config.factor)).chunk(2, dim=1)  # (B, Z, h, w)
    decoded = vae.decode(means).clamp(-1, 1)  # (B, 3, H, W)
    latents = by_position(means * config.scaling_factor)  # (N, Z)
    colours = by_position(F.avg_pool2d(decoded, config.factor))  # (N, 3)
    if not (latents.isfinite().all() and colours.isfinite().all()):
        return None
    inputs = np.concatenate([latents.numpy(), np.ones((len(latents), 1))], axis=1)
    fitted, *_ = np.linalg.lstsq(inputs, colours.numpy())
    *weights, biases = fitted.round(DECIMALS).tolist()
    return {"weights": weights, "biases": biases}


def by_position(images: Tensor) -> Tensor:
    """(B, C, h, w) -> float64 (N, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2).double()
