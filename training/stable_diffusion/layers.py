"""Layers that the UNet and the VAE, or all three networks, share.

Shapes: B batch, C channels, h w height and width of a feature map, L and S lengths of sequences, T width of the time
embedding.

Attribute names are those of diffusers' state dicts, so that its weights fit without renaming.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, section 3.2).

    Shapes: (B, L, C), (B, S, C), (B, S, C) -> (B, L, C).
    """
    query, key, value = (split_heads(x, num_heads) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return out.transpose(1, 2).flatten(-2)


def attention_weights(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """How much each position of ``query`` looks at each of ``key``: the weights of the values in ``attention``.

    Attention itself never has them in memory as a whole; this is for people who want to see them.

    Shapes: (B, L, C), (B, S, C) -> (B, heads, L, S), which sum to one over S.
    """
    query, key = split_heads(query, num_heads), split_heads(key, num_heads)
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, C) -> (B, heads, L, C / heads)."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


class ResnetBlock2D(nn.Module):
    """Two 3x3 convolutions, each after group normalisation and SiLU, around which the input is added.

    Shapes: (B, in, h, w) -> (B, out, h, w). With ``time_embed_dim`` the time embedding (B, T), already activated, is
    added between the two.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, eps: float, time_embed_dim: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_embed_dim, out_channels) if time_embed_dim else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nn.Module):
    """A 3x3 convolution of stride 2.

    The UNet pads each side by one: (B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2)). The VAE's encoder pads on the
    right and at the bottom only, as its authors did: (B, C, h, w) -> (B, C, floor(h / 2), floor(w / 2)).
    """

    def __init__(self, channels: int, asymmetric_padding: bool = False) -> None:
        super().__init__()
        self.asymmetric_padding = asymmetric_padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric_padding else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric_padding:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement to a given size, then a 3x3 convolution: (B, C, h, w) -> (B, C, *size)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out
