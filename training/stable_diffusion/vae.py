"""The variational autoencoder between pixels and latents (Rombach et al. 2022, section 3.1).

Shapes: B batch, H W pixels, h w latents (H / factor, W / factor), C channels, Z latent channels, N = h · w positions.

Nothing here is random: the encoder gives mean and log-variance of the latents, and who wants a sample draws it. Nor is
``scaling_factor`` applied here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.config import VAEConfig
from training.stable_diffusion.layers import Downsample2D, ResnetBlock2D, Upsample2D, attention


class AutoencoderKL(nn.Module):
    """Encoder and decoder, each with a 1x1 convolution on the side of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, sample: Tensor) -> Tensor:
        """Images -> the distribution of their latents.

        Args:
            sample: float32 (B, 3, H, W) in [-1, 1].

        Returns:
            latent_parameters, float32 (B, 2Z, h, w): Z channels of means, then Z of log-variances, not clipped.
        """
        latent_parameters: Tensor = self.quant_conv(self.encoder(sample))
        return latent_parameters

    def decode(self, latent_sample: Tensor) -> Tensor:
        """Latents -> images.

        Args:
            latent_sample: float32 (B, Z, h, w), already divided by ``scaling_factor``.

        Returns:
            sample, float32 (B, 3, H, W), mostly in [-1, 1].
        """
        sample: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return sample


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, 2Z, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        finest, coarsest = config.block_out_channels[0], config.block_out_channels[-1]
        self.conv_in = nn.Conv2d(config.in_channels, finest, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        in_channels = finest
        for level, channels in enumerate(config.block_out_channels, start=1):
            downsample = level < len(config.block_out_channels)
            self.down_blocks.append(DownBlock(config, in_channels, channels, downsample))
            in_channels = channels
        self.mid_block = MidBlock(config, coarsest)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, coarsest, config.norm_eps)
        self.conv_out = nn.Conv2d(coarsest, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for down_block in self.down_blocks:
            x = down_block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """(B, Z, h, w) -> (B, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        finest, coarsest = config.block_out_channels[0], config.block_out_channels[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, coarsest, 3, padding=1)
        self.mid_block = MidBlock(config, coarsest)
        self.up_blocks = nn.ModuleList()
        in_channels = coarsest
        for level, channels in enumerate(reversed(config.block_out_channels), start=1):
            upsample = level < len(config.block_out_channels)
            self.up_blocks.append(UpBlock(config, in_channels, channels, upsample))
            in_channels = channels
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, finest, config.norm_eps)
        self.conv_out = nn.Conv2d(finest, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for up_block in self.up_blocks:
            x = up_block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


def resnets(config: VAEConfig, in_channels: int, channels: int, layers: int) -> nn.ModuleList:
    """``layers`` residual blocks; the first one changes the width."""
    widths = [in_channels] + [channels] * (layers - 1)
    return nn.ModuleList(ResnetBlock2D(width, channels, config.norm_num_groups, config.norm_eps) for width in widths)


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(self, config: VAEConfig, in_channels: int, channels: int, downsample: bool) -> None:
        super().__init__()
        self.resnets = resnets(config, in_channels, channels, config.layers_per_block)
        self.downsamplers = nn.ModuleList([Downsample2D(channels, asymmetric_padding=True)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *self.downsamplers):
            x = module(x)
        return x


class UpBlock(nn.Module):
    """One level of the decoder."""

    def __init__(self, config: VAEConfig, in_channels: int, channels: int, upsample: bool) -> None:
        super().__init__()
        self.resnets = resnets(config, in_channels, channels, config.layers_per_block + 1)
        self.upsamplers = nn.ModuleList([Upsample2D(channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            height, width = x.shape[-2:]
            x = upsampler(x, (2 * height, 2 * width))
        return x


class MidBlock(nn.Module):
    """The coarsest resolution: a residual block, attention, a residual block."""

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.resnets = resnets(config, channels, channels, layers=2)
        self.attentions = nn.ModuleList([SpatialAttention(config, channels)])

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = module(x)
        return x


class SpatialAttention(nn.Module):
    """Every position looks at every other one, with a single head; the input is added: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(config.norm_num_groups, channels, config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        seen = attention(self.to_q(normed), self.to_k(normed), self.to_v(normed), num_heads=1)
        out: Tensor = self.to_out(seen).transpose(1, 2).reshape(x.shape)  # (B, C, h, w)
        return out + x
