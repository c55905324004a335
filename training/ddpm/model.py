"""The class-conditional U-Net of the paper.

Shapes: B batch, C image channels, H = W = image_size, F features, K classes. Three resolutions: H, H/2 and H/4;
below them one vector of 2F numbers per image, from which the way up begins.

The network follows the paper and its published ancestor (TeaPearce/Conditional_Diffusion_MNIST) in its blocks and in
the way conditions enter: the class multiplies and the time adds, once at each level of the way up. It departs from them
in three things: the time passes through a sinusoidal embedding (Vaswani et al. 2017, section 3.5) before its
Linear-GELU-Linear block, so that fractions are welcome and neighbours are told apart; the image size and the number of
classes are parameters; and a dropped label is the all-zero vector, a kept one its one-hot vector (the ancestor's mask
turned kept labels into -1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GROUPS = 8
MOST_FEATURES = 1024  # 430 million parameters


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net.

    Attributes:
        in_channels: C, channels of the image.
        image_size: H = W in pixels; a multiple of 4, since there are two poolings.
        features: F, channels at full resolution; a multiple of 8, the number of normalisation groups, up to 1024.
        num_classes: K; the label K stands for "no class" (the null class of classifier-free guidance).
    """

    in_channels: int = 1
    image_size: int = 28
    features: int = 64
    num_classes: int = 10

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.num_classes < 1:
            raise ValueError(f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1")
        if self.image_size < 4 or self.image_size % 4:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 4")
        if not GROUPS <= self.features <= MOST_FEATURES or self.features % GROUPS:
            raise ValueError(f"features {self.features} must be a multiple of {GROUPS}, up to {MOST_FEATURES}")


class ResidualConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and GELU; ``residual`` adds the first one's output."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = conv_norm_gelu(in_channels, out_channels)
        self.conv2 = conv_norm_gelu(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        second: Tensor = self.conv2(first)
        # The sum of two comparable terms has twice the variance of one; dividing by √2 keeps the scale.
        return (first + second) / math.sqrt(2) if self.residual else second


def conv_norm_gelu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.GELU())


class DownBlock(nn.Sequential):
    """A residual block, then 2x2 max pooling: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(ResidualConvBlock(in_channels, out_channels), nn.MaxPool2d(2))


class UpBlock(nn.Module):
    """A transposed convolution over input and skip connection, then two residual blocks: doubles height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.block1 = ResidualConvBlock(out_channels, out_channels)
        self.block2 = ResidualConvBlock(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.upsample(torch.cat([x, skip], dim=1))
        out: Tensor = self.block2(self.block1(x))
        return out


class EmbeddingBlock(nn.Sequential):
    """Linear, GELU, Linear: (B, in) -> (B, out, 1, 1), ready to modulate a feature map."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, out_features),
            nn.GELU(),
            nn.Linear(out_features, out_features),
            nn.Unflatten(1, (out_features, 1, 1)),
        )


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Cosines and sines of ``timestep`` at ``dim / 2`` frequencies from 1 down to 1/10,000: (B,) -> (B, dim)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class ClassConditionalUNet(nn.Module):
    """Predicts the noise in a noisy image, given its time and its class."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, features, bottleneck = config.in_channels, config.features, config.image_size // 4

        self.conv_in = ResidualConvBlock(channels, features, residual=True)
        self.down1 = DownBlock(features, features)
        self.down2 = DownBlock(features, 2 * features)

        self.time_embedding1 = EmbeddingBlock(features, 2 * features)
        self.time_embedding2 = EmbeddingBlock(features, features)
        self.class_embedding1 = EmbeddingBlock(config.num_classes, 2 * features)
        self.class_embedding2 = EmbeddingBlock(config.num_classes, features)

        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * features, 2 * features, kernel_size=bottleneck),
            nn.GroupNorm(GROUPS, 2 * features),
            nn.GELU(),
        )
        self.up1 = UpBlock(4 * features, features)
        self.up2 = UpBlock(2 * features, features)
        self.conv_out = nn.Sequential(
            nn.Conv2d(2 * features, features, 3, padding=1),
            nn.GroupNorm(GROUPS, features),
            nn.GELU(),
            nn.Conv2d(features, channels, 3, padding=1),
        )

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            sample: noisy images, float32 (B, C, H, W), of unit scale at the noisiest step.
            timestep: float32 (B,), 0 .. num_train_timesteps - 1; fractions are allowed.
            class_labels: int64 (B,), 0 .. K - 1, or K for no class.

        Returns:
            The predicted noise, float32 (B, C, H, W).
        """
        time = sinusoidal_embedding(timestep, self.config.features)  # (B, F)
        # A comparison rather than F.one_hot: the null class K matches no column and so masks itself to zeros.
        classes = torch.arange(self.config.num_classes, device=class_labels.device)
        context = (class_labels[:, None] == classes[None, :]).to(sample.dtype)  # (B, K)

        x = self.conv_in(sample)  # (B, F, H, W)
        down1 = self.down1(x)  # (B, F, H/2, W/2)
        down2 = self.down2(down1)  # (B, 2F, H/4, W/4)
        bottleneck = nn.functional.gelu(down2.mean(dim=(2, 3), keepdim=True))  # (B, 2F, 1, 1)

        up = self.up0(bottleneck)  # (B, 2F, H/4, W/4)
        up = self.up1(self.class_embedding1(context) * up + self.time_embedding1(time), down2)  # (B, F, H/2, W/2)
        up = self.up2(self.class_embedding2(context) * up + self.time_embedding2(time), down1)  # (B, F, H, W)
        out: Tensor = self.conv_out(torch.cat([up, x], dim=1))
        return out
