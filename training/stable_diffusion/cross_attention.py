"""Where the UNet looks while it draws: the weights of its attention to the text, by place and token.

Shapes: B batch, C channels, h w height and width of a feature map, N = h · w its positions, L tokens, D width of the
text embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.layers import attention_weights
from training.stable_diffusion.transformer import Attention, BasicTransformerBlock, Transformer2DModel


@dataclass(frozen=True)
class AttentionMap:
    """What one layer looked at in one evaluation.

    Attributes:
        layer: the layer's name in the UNet, such as "up_blocks.1.attentions.0.transformer_blocks.0".
        weights: (B, heads, h, w, L): how much each place looked at each token; they sum to one over the tokens.
    """

    layer: str
    weights: Tensor


@contextmanager
def record_cross_attention(unet: nn.Module) -> Iterator[list[AttentionMap]]:
    """Note what the UNet looks at in the text while the context lasts.

    Gives a list that grows by one map for each attention to the text in each evaluation, in the order in which they are
    computed. The UNet computes what it always does; the weights are computed a second time beside it.
    """
    recorder = Recorder([])
    handles = []
    for name, module in unet.named_modules():
        if isinstance(module, Transformer2DModel):
            handles.append(module.register_forward_pre_hook(recorder.begin))
        elif isinstance(module, BasicTransformerBlock):
            handles.append(module.attn2.register_forward_hook(partial(recorder.note, name)))
    try:
        yield recorder.maps
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Recorder:
    """The hooks of one recording.

    Attributes:
        maps: what was noted.
        size: height and width of the feature map in the transformer that is being computed.
    """

    maps: list[AttentionMap]
    size: tuple[int, ...] = ()

    def begin(self, transformer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the size of the map, which inside the transformer is a plain sequence: (B, C, h, w), (B, L, D)."""
        self.size = tuple(inputs[0].shape[-2:])

    @torch.no_grad()
    def note(self, layer: str, attention: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Note the weights of an ``Attention`` that looked from x at the text: (B, N, C), (B, L, D) -> (B, N, C)."""
        x, text = inputs
        query, key = attention.get_submodule("to_q")(x), attention.get_submodule("to_k")(text)
        weights = attention_weights(query, key, cast(Attention, attention).num_heads)  # (B, heads, N, L)
        self.maps.append(AttentionMap(layer, weights.unflatten(2, self.size)))


def mean_attention(maps: Sequence[AttentionMap], size: tuple[int, int]) -> Tensor:
    """One map for each token: the mean over layers, heads and evaluations, brought to a common size.

    Args:
        maps: at least one, all of equal batches and numbers of tokens.
        size: height and width.

    Returns:
        (B, L, height, width); it sums to one over the tokens.
    """
    by_token = (each.weights.mean(dim=1).movedim(-1, 1) for each in maps)  # (B, L, h, w)
    return torch.stack([F.interpolate(each, size=size, mode="bilinear") for each in by_token]).mean(dim=0)
