"""What the DDPM shows of itself while it learns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.ddpm.config import TrainConfig
from training.ddpm.diffusion import Denoiser
from training.ddpm.sampler import guided, sample_ddim

PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = 3.0
PREVIEWS_PER_CLASS = 4


def preview_sheet(network: Denoiser, config: TrainConfig, start: Tensor) -> Tensor:
    """A few images of each class, a row for each: uint8 (C, H rows, W columns).

    Args:
        network: the averaged weights, in evaluation mode.
        config: what they were trained with.
        start: standard normal, (K PREVIEWS_PER_CLASS, C, H, W), on the network's device.
    """
    classes = config.model.num_classes
    labels = torch.arange(classes, device=start.device).repeat_interleave(PREVIEWS_PER_CLASS)
    predict = guided(network, labels, classes, PREVIEW_GUIDANCE)
    last = config.schedule.num_train_timesteps - 1
    timesteps = sorted({round(t) for t in np.linspace(last, 0, min(PREVIEW_STEPS, last + 1))}, reverse=True)
    *_, images = sample_ddim(predict, config.schedule, start, timesteps)
    _, channels, height, width = images.shape
    rows = images.reshape(classes, PREVIEWS_PER_CLASS, channels, height, width)
    sheet = rows.permute(2, 0, 3, 1, 4).reshape(channels, classes * height, PREVIEWS_PER_CLASS * width)
    return ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
