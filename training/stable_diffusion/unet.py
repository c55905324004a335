"""The UNet of Stable Diffusion 1.5: from noisy latents, a time and text embeddings to the noise that it sees in them.

Shapes: B batch, C channels, h w height and width of the latents or of a feature map, L tokens, D width of the text
embeddings, T width of the time embedding.

Every level of the way down leaves its feature maps on a stack, and the way up takes them off again. Enlargement goes to
the size of the map on top of the stack rather than to twice the size, so that sides need not be multiples of anything:
65 goes down to 33, 17, 9 and comes back to 17, 33, 65.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.config import UNetConfig, UNetLevel
from training.stable_diffusion.layers import Downsample2D, ResnetBlock2D, Upsample2D
from training.stable_diffusion.transformer import Transformer2DModel


class UNet2DConditionModel(nn.Module):
    """Predicts the noise in noisy latents (or v, or the latents, whichever it was trained for) from time and text."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        finest, coarsest = config.levels[0].channels, config.levels[-1].channels
        self.time_proj = Timesteps(finest)
        self.time_embedding = TimestepEmbedding(finest, config.time_embed_dim)
        self.conv_in = nn.Conv2d(config.in_channels, finest, 3, padding=1)

        # Each way loops over the rows of config.levels; skips are the widths of the maps that forward() will stack.
        self.down_blocks = nn.ModuleList()
        channels, skips = finest, [finest]
        for row, level in enumerate(config.levels, start=1):
            downsample = row < len(config.levels)
            self.down_blocks.append(DownBlock(config, level, channels, downsample))
            channels = level.channels
            skips += [channels] * (config.layers_per_block + downsample)

        self.mid_block = MidBlock(config, coarsest)

        self.up_blocks = nn.ModuleList()
        for level in reversed(config.levels):
            level_skips = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(config, level, channels, level_skips, upsample=bool(skips)))
            channels = level.channels

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, finest, config.norm_eps)
        self.conv_out = nn.Conv2d(finest, config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Predict.

        Args:
            sample: noisy latents, float32 (B, in_channels, h, w), of unit scale.
            timestep: float32 (B,), 0 .. num_train_timesteps - 1; fractions are allowed.
            encoder_hidden_states: text embeddings, float32 (B, L, D).

        Returns:
            The prediction, float32 (B, out_channels, h, w).
        """
        # Every residual block would begin with this activation; it is applied once here.
        time = F.silu(self.time_embedding(self.time_proj(timestep)))  # (B, T)
        x = self.conv_in(sample)
        skips = [x]
        for down_block in self.down_blocks:
            x = down_block(x, time, encoder_hidden_states, skips)
        x = self.mid_block(x, time, encoder_hidden_states)
        for up_block in self.up_blocks:
            x = up_block(x, time, encoder_hidden_states, skips)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class Timesteps(nn.Module):
    """Cosines, then sines, of the time at C / 2 frequencies from 1 down to almost 1/10,000: (B,) -> (B, C).

    As in Vaswani et al. 2017, section 3.5, but with the cosines first (``flip_sin_to_cos`` in diffusers' configuration
    files).
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        # Made once and here, since at time 999 a last-place difference of some exp() would move an angle by 6e-5; and
        # on the CPU even where the weights are on the meta device, since no checkpoint brings them.
        exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
        self.register_buffer("frequencies", torch.exp(exponents), persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * self.frequencies[None, :]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, Linear: (B, C) -> (B, T)."""

    def __init__(self, channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class UNetBlock(nn.Module):
    """What all blocks of the UNet have in common: residual blocks, and transformers after all or some of them."""

    def __init__(self, config: UNetConfig, channels: int, in_channels: list[int], num_attentions: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(width, channels, config.norm_num_groups, config.norm_eps, config.time_embed_dim)
            for width in in_channels
        )
        self.attentions = nn.ModuleList(Transformer2DModel(config, channels) for _ in range(num_attentions))

    def layer(self, index: int, x: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Residual block ``index`` and, if there is one, the transformer after it."""
        x = self.resnets[index](x, time)
        return self.attentions[index](x, encoder_hidden_states) if index < len(self.attentions) else x


class DownBlock(UNetBlock):
    """One level of the way down; puts each of its feature maps on the stack."""

    def __init__(self, config: UNetConfig, level: UNetLevel, in_channels: int, downsample: bool) -> None:
        layers = config.layers_per_block
        inputs = [in_channels] + [level.channels] * (layers - 1)
        super().__init__(config, level.channels, inputs, layers if level.cross_attention else 0)
        self.downsamplers = nn.ModuleList([Downsample2D(level.channels)] if downsample else [])

    def forward(self, x: Tensor, time: Tensor, encoder_hidden_states: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time, encoder_hidden_states)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x


class MidBlock(UNetBlock):
    """The coarsest resolution: a residual block, a transformer, a residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__(config, channels, [channels, channels], num_attentions=1)

    def forward(self, x: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        x = self.layer(0, x, time, encoder_hidden_states)
        return self.layer(1, x, time, encoder_hidden_states)


class UpBlock(UNetBlock):
    """One level of the way up; takes a map off the stack for each layer, then enlarges to the size of the next one."""

    def __init__(
        self, config: UNetConfig, level: UNetLevel, in_channels: int, skip_channels: list[int], upsample: bool
    ) -> None:
        layers = len(skip_channels)
        widths = [in_channels] + [level.channels] * (layers - 1)
        inputs = [width + skip for width, skip in zip(widths, skip_channels, strict=True)]
        super().__init__(config, level.channels, inputs, layers if level.cross_attention else 0)
        self.upsamplers = nn.ModuleList([Upsample2D(level.channels)] if upsample else [])

    def forward(self, x: Tensor, time: Tensor, encoder_hidden_states: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = torch.cat([x, skips.pop()], dim=1)  # (B, C + skip's C, h, w)
            x = self.layer(index, x, time, encoder_hidden_states)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[-2:])
        return x
