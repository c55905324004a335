"""Attention as engines know it, so that they can fuse it into one operator.

torch's exporter scales query and key by a square root each and transposes the key by way of shapes that it computes.
That is right, but no pattern that an engine looks for. Here batch and heads become one dimension, as in the graphs of
PyTorch 1 by which ONNX Runtime's fusions were written: MatMul, Mul, Softmax, MatMul, with one Reshape and one Transpose
around each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript.onnx_opset import opset20

op: Any = opset20  # whose annotations do not know that tracing passes symbols where tensors will be


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1): (B, heads, L, E), 2 x (B, heads, S, E) -> as query.

    The parameters are those of ``torch.nn.functional.scaled_dot_product_attention``.

    Raises:
        NotImplementedError: a mask, dropout or grouped heads are asked for.
    """
    if attn_mask is not None or dropout_p or enable_gqa:
        raise NotImplementedError("attention with a mask, dropout or grouped heads is not exported")
    heads, size = query.shape[1], query.shape[-1]
    queries, keys, values = (op.Reshape(x, joined([-1], op.Shape(x, start=2))) for x in (query, key, value))
    scores = op.MatMul(queries, op.Transpose(keys, perm=[0, 2, 1]))  # (B heads, L, S)
    scores = op.Mul(scores, op.Constant(value_float=scale or size**-0.5))
    if is_causal:
        # Zeros on and below the diagonal and minus infinity above it: a position does not see those after it.
        forbidden = op.Expand(op.Constant(value_float=-math.inf), op.Shape(scores, start=1))
        scores = op.Add(scores, op.Trilu(forbidden, op.Constant(value_int=1), upper=1))
    seen = op.MatMul(op.Softmax(scores, axis=-1), values)  # (B heads, L, E)
    return op.Reshape(seen, joined([-1, heads], op.Shape(seen, start=1)))


def joined(sizes: list[int], shape: Any) -> Any:
    """A shape that begins with ``sizes``."""
    return op.Concat(op.Constant(value_ints=sizes), shape, axis=0)


FUSABLE: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.scaled_dot_product_attention.default: attention}
"""For ``torch.onnx.export``: how it is to write attention."""
