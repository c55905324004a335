"""A small residual network (He et al. 2016) that reads which class an image shows.

Shapes: B batch, C image channels, H = W = image_size, F features, K classes, S stages. Resolutions: H, H/2, H/4 and so
on, one for each stage.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from training.classifier.config import NetworkConfig


class Stage(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and ReLU; the first one's output is added to the second's."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return x + F.relu(self.norm2(self.conv2(x)))


class Classifier(nn.Module):
    """Reads images; one row of logits for each."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels = [config.in_channels, *config.widths]
        self.stages = nn.ModuleList(Stage(before, after) for before, after in itertools.pairwise(channels))
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def embed(self, sample: Tensor) -> Tensor:
        """What the decision is made from: images in [-1, 1], float32 (B, C, H, W) -> (B, 4F) from three stages on."""
        x = sample
        for level, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if level else x)  # (B, min(2^level, 4) F, H / 2^level, W / 2^level)
        embedding: Tensor = x.mean(dim=(2, 3))  # (B, 4F)
        return embedding

    def forward(self, sample: Tensor) -> Tensor:
        """Images in [-1, 1], float32 (B, C, H, W) -> logits (B, K)."""
        logits: Tensor = self.head(self.embed(sample))
        return logits
