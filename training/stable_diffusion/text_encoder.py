"""CLIP's text encoder: a causal transformer from token ids to embeddings (Radford et al. 2021, section 2.4).

Shapes: B batch, L tokens (at most 77), D width, K extra embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.config import TextEncoderConfig
from training.stable_diffusion.layers import attention


class CLIPTextModel(nn.Module):
    """Token ids -> embeddings that the UNet looks at."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, input_ids: Tensor, extra_embeddings: Tensor, clip_skip: Tensor) -> Tensor:
        """Encode one chunk of tokens per row.

        Args:
            input_ids: int64 (B, L), L at most ``max_position_embeddings``; ids from ``vocab_size`` on choose rows of
                ``extra_embeddings``.
            extra_embeddings: float32 (K, D), K at least 1: learned tokens (textual inversion, Gal et al. 2022), zeros
                where none are used.
            clip_skip: int64 (), how many of the last layers are left out, 0 .. ``num_hidden_layers``. The user
                interfaces that count from 1 say 2 where this says 1.

        Returns:
            last_hidden_state, float32 (B, L, D), after the final layer normalisation.

        Raises:
            ValueError: L is above ``max_position_embeddings``.
        """
        last_hidden_state: Tensor = self.text_model(input_ids, extra_embeddings, clip_skip)
        return last_hidden_state


class TextTransformer(nn.Module):
    """Embeddings, layers and the final normalisation."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: Tensor, extra_embeddings: Tensor, clip_skip: Tensor) -> Tensor:
        hidden_states = self.encoder(self.embeddings(input_ids, extra_embeddings))  # layers + 1 times (B, L, D)
        # The last state comes first, so that clip_skip is the index; chosen by a tensor, it stays an input of the
        # exported graph.
        from_last = torch.stack(hidden_states[::-1])  # (layers + 1, B, L, D)
        chosen = from_last.index_select(0, clip_skip.reshape(1)).squeeze(0)  # (B, L, D)
        last_hidden_state: Tensor = self.final_layer_norm(chosen)
        return last_hidden_state


class TextEmbeddings(nn.Module):
    """The sum of a token's and its position's embedding: (B, L) -> (B, L, D)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, extra_embeddings: Tensor) -> Tensor:
        length, longest = input_ids.shape[1], self.position_embedding.num_embeddings
        if length > longest:
            raise ValueError(f"input_ids has {length} tokens in a row; the text encoder has {longest} positions")
        # Two lookups and a choice, since concatenating the tables would copy 150 MB at every call.
        vocab_size = self.token_embedding.num_embeddings
        known = self.token_embedding(input_ids.clamp(max=vocab_size - 1))  # (B, L, D)
        extra = F.embedding((input_ids - vocab_size).clamp(min=0), extra_embeddings)  # (B, L, D)
        tokens = torch.where((input_ids >= vocab_size)[..., None], extra, known)
        positions: Tensor = self.position_embedding(torch.arange(length, device=input_ids.device))  # (L, D)
        return tokens + positions


class TextEncoder(nn.Module):
    """The layers in turn."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, L, D) -> what goes into the first layer and what comes out of each, every one (B, L, D)."""
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return hidden_states


class TextEncoderLayer(nn.Module):
    """Causal self-attention, then a feed-forward network, each after layer normalisation and added to its input."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at those before it: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        seen = attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.num_heads, is_causal=True)
        out: Tensor = self.out_proj(seen)
        return out


class FeedForward(nn.Module):
    """Linear, quick GELU, Linear: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(quick_gelu(self.fc1(x)))
        return out


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation of GELU (Hendrycks & Gimpel 2016, section 2) that CLIP learned with."""
    return x * torch.sigmoid(1.702 * x)
