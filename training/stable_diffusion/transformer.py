"""The transformers inside the UNet: where the picture looks at itself and at the text.

Shapes: B batch, C channels, h w height and width of the feature map, N = h · w its positions, L tokens, D width of the
text embeddings.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.config import UNetConfig
from training.stable_diffusion.layers import attention


class Transformer2DModel(nn.Module):
    """A transformer block over the positions of a feature map, around which the map is added.

    Shapes: (B, C, h, w), (B, L, D) -> (B, C, h, w).
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, config.transformer_norm_eps)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(config, channels)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        hidden = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        for block in self.transformer_blocks:
            hidden = block(hidden, encoder_hidden_states)
        out: Tensor = self.proj_out(hidden.transpose(1, 2).reshape(x.shape))  # (B, C, h, w)
        return out + x


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text and a feed-forward network, each normalised before and added to its input.

    Shapes: (B, N, C), (B, L, D) -> (B, N, C).
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, config.cross_attention_dim, config.num_attention_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), encoder_hidden_states)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Attention(nn.Module):
    """Positions of ``x`` look at rows of ``context``: (B, N, C), (B, L, context_dim) -> (B, N, C)."""

    def __init__(self, channels: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        seen = attention(self.to_q(x), self.to_k(context), self.to_v(context), self.num_heads)
        out: Tensor = self.to_out(seen)
        return out


class FeedForward(nn.Module):
    """GEGLU to four times the width and back: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The middle one was dropout in training; it keeps the last one's place in the state dict.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class GEGLU(nn.Module):
    """A linear layer, half of whose output passes through GELU and gates the other half (Shazeer 2020).

    Shapes: (..., in) -> (..., out).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated
