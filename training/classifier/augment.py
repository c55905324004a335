"""Slightly different images of the same class: shifted, turned and scaled."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.classifier.config import ClassifierConfig


def augment(images: Tensor, config: ClassifierConfig, draws: torch.Generator) -> Tensor:
    """Shift, turn and scale each image by its own amounts, drawn evenly up to the configuration's bounds.

    Where this looks beyond an image's border, it sees the border's pixels.

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
    shift_x, shift_y, angle, scaling = amounts.unbind(1)
    cos, sin = angle.cos() / (1 + scaling), angle.sin() / (1 + scaling)  # from where each output pixel is taken
    rows = [torch.stack([cos, -sin, shift_x], dim=1), torch.stack([sin, cos, shift_y], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
