"""Slightly different images of the same class: shifted, turned, scaled and mirrored."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.classifier.config import ClassifierConfig


def augment(images: Tensor, config: ClassifierConfig, draws: torch.Generator) -> Tensor:
    """Shift, turn and scale each image by its own amounts, evenly up to the configuration's bounds, and mirror some.

    Where this looks beyond an image's border, it sees the border's pixels. Where nothing is turned or scaled, images
    are shifted by whole pixels, which blurs none.

    Args:
        images: float32 (B, C, H, W), H = W.
        config: the bounds.
        draws: where the amounts come from.

    Returns:
        float32 (B, C, H, W).
    """
    # F.grid_sample's coordinates run from -1 to 1, so that a pixel is 2 / W of them.
    pixel = 2 / images.shape[-1]
    bounds = [config.max_shift * pixel, config.max_shift * pixel, math.radians(config.max_rotation), config.max_scaling]
    amounts = (2 * torch.rand(len(images), len(bounds), generator=draws) - 1) * torch.tensor(bounds)
    if not (config.max_rotation or config.max_scaling):
        amounts = whole_pixels(amounts / pixel, config.max_shift) * pixel
    mirror = torch.rand(len(images), generator=draws) < 0.5 * config.flip
    shift_x, shift_y, angle, scaling = amounts.unbind(1)
    cos, sin = angle.cos() / (1 + scaling), angle.sin() / (1 + scaling)  # from where each output pixel is taken
    side = 1.0 - 2.0 * mirror
    rows = [torch.stack([side * cos, -side * sin, shift_x], dim=1), torch.stack([sin, cos, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def whole_pixels(amounts: Tensor, bound: float) -> Tensor:
    """Amounts that are even between -bound and bound, as whole numbers: each up to the whole bound as often."""
    most = math.floor(bound)
    share = amounts / (2 * bound) + 0.5 if bound else torch.full_like(amounts, 0.5)  # even between 0 and 1
    return (share * (2 * most + 1)).floor().clamp(max=2 * most) - most
