"""Several nodes into one operator of ONNX Runtime's own (domain ``com.microsoft``), as rules for onnxscript's rewriter.

ONNX Runtime fuses a part of this by itself when it loads a graph, and none of what is here (``docs/speed.md`` says
what was looked at). No rule touches a weight: each stays in the file under its name, so that a fused graph shares the
file with the weights of the portable one, and the manifest's map of them holds for both.

A rule knows the graphs that ``export.trace`` and ``export.half`` write. Where a node is kept in float32 in the middle
of an fp16 graph, casts stand around it, no rule fits, and it stays as it is.

Shapes: B batch, L and S lengths of sequences, C channels, D width of a sequence, h w height and width, E size of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

CONTRIB = "com.microsoft"
SPLIT_HEADS, SWAP, TO_NHWC, TO_NCHW = [0, 2, 1, 3], [0, 2, 1], [0, 2, 3, 1], [0, 3, 1, 2]
# What the CUDA kernels are compiled for.
BIAS_SPLIT_GELU_WIDTHS = (2560, 5120, 10240)
BIAS_ADD_WIDTHS = (320, 640, 1280)


def constant(value: ir.Value | None, most: int = 8) -> list[Any] | None:
    """The numbers of a small constant, flat; None of anything else. Weights are not read."""
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.size > most:
        return None
    numbers: list[Any] = tensor.numpy().ravel().tolist()
    return numbers


def is_vector(value: ir.Value | None, widths: Sequence[int] | None = None) -> bool:
    """Whether a value is an initialiser of one dimension, of one of some widths."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    shape = value.const_value.shape.numpy()
    return len(shape) == 1 and (widths is None or shape[0] in widths)


class Attention:
    """What ``export.attention`` writes, with the division into heads around it, as ``MultiHeadAttention``.

    Engines then need not hold a score for every pair of positions: on the CPU, blocks of them fit into the second-level
    cache (Dao et al. 2022).
    """

    causal = False

    def pattern(
        self, op: Any, query: Any, key: Any, value: Any, q_split: Any, k_split: Any, v_split: Any, scale: Any,
        q_minus: Any, k_minus: Any, v_minus: Any, unfold: Any, join: Any, diagonal: Any, infinity: Any,
    ) -> Any:  # fmt: skip
        queries = folded(op, query, q_split, q_minus)  # (B heads, L, E)
        keys = folded(op, key, k_split, k_minus)
        values = folded(op, value, v_split, v_minus)
        scores = op.Mul(op.MatMul(queries, op.Transpose(keys, perm=SWAP)), scale)  # (B heads, L, S)
        if self.causal:
            scores = op.Add(scores, op.Trilu(op.Expand(infinity, op.Shape(scores, start=1)), diagonal, upper=1))
        seen = op.MatMul(op.Softmax(scores, axis=-1), values)
        heads = op.Reshape(seen, op.Concat(unfold, op.Shape(seen, start=1), axis=0))  # (B, heads, L, E)
        return op.Reshape(op.Transpose(heads, perm=SPLIT_HEADS), join)  # (B, L, D)

    def check(
        self, context: Any, q_split: Any, k_split: Any, v_split: Any, q_minus: Any, k_minus: Any, v_minus: Any,
        scale: Any, unfold: Any, join: Any, diagonal: Any = None, infinity: Any = None, **_: Any,
    ) -> bool:  # fmt: skip
        splits = [constant(each) for each in (q_split, k_split, v_split)]
        if any(split is None or len(split) != 4 or split[:2] != [0, 0] for split in splits):
            return False
        (_, _, heads, size), keys, (_, _, value_heads, value_size) = (split or [] for split in splits)
        return (
            heads > 0
            and keys == [0, 0, heads, size]
            and value_heads == heads
            and all(constant(each) == [-1] for each in (q_minus, k_minus, v_minus))
            and constant(unfold) == [-1, heads]
            and constant(join) == [0, 0, heads * value_size]
            and len(constant(scale) or []) == 1
            and (not self.causal or (constant(diagonal) == [1] and hides(infinity)))
        )

    def rewrite(self, op: Any, query: Any, key: Any, value: Any, q_split: Any, scale: Any, **_: Any) -> Any:
        heads, factor = (constant(q_split) or [])[2], (constant(scale) or [])[0]
        further = {"unidirectional": 1} if self.causal else {}
        return op.MultiHeadAttention(query, key, value, num_heads=heads, scale=factor, **further, _domain=CONTRIB)


def hides(value: ir.Value) -> bool:
    """Whether a constant hides what it is added to: minus infinity, or the lowest number that float16 has."""
    numbers = constant(value)
    return numbers is not None and len(numbers) == 1 and numbers[0] <= np.finfo(np.float16).min


def folded(op: Any, sequence: Any, split: Any, minus: Any) -> Any:
    """(B, L, D) -> (B heads, L, E)."""
    heads = op.Transpose(op.Reshape(sequence, split), perm=SPLIT_HEADS)
    return op.Reshape(heads, op.Concat(minus, op.Shape(heads, start=2), axis=0))


class CausalAttention(Attention):
    """The same where a position does not see those after it."""

    causal = True


class GroupNorm:
    """Group normalisation with its scale and shift as ``GroupNorm``, which computes in float32 on channels that come
    last."""

    silu = False

    def pattern(
        self, op: Any, x: Any, groups: Any, ones: Any, zeros: Any, gamma: Any, beta: Any, g_axes: Any, b_axes: Any
    ) -> Any:
        single = op.Cast(op.Reshape(x, groups), to=ir.DataType.FLOAT)
        normal = op.Cast(op.InstanceNormalization(single, ones, zeros, _outputs=["normal"]), to=ir.DataType.FLOAT16)
        scaled = op.Mul(op.Reshape(normal, op.Shape(x, start=0)), op.Unsqueeze(gamma, g_axes))
        shifted = op.Add(scaled, op.Unsqueeze(beta, b_axes))
        return op.Mul(shifted, op.Sigmoid(shifted)) if self.silu else shifted

    def check(
        self,
        context: Any,
        groups: Any,
        ones: Any,
        zeros: Any,
        gamma: Any,
        beta: Any,
        g_axes: Any,
        b_axes: Any,
        **_: Any,
    ) -> bool:
        target = constant(groups)
        if target is None or len(target) != 3 or target[0] != 0 or target[2] != -1:
            return False
        return (
            constant(ones, target[1]) == [1.0] * target[1]
            and constant(zeros, target[1]) == [0.0] * target[1]
            and constant(g_axes) == constant(b_axes) == [1, 2]  # (C, 1, 1): the values are (B, C, h, w)
            and is_vector(gamma)
            and is_vector(beta)
        )

    def rewrite(self, op: Any, x: Any, groups: Any, gamma: Any, beta: Any, normal: Any, **_: Any) -> Any:
        made = op.GroupNorm(
            op.Transpose(x, perm=TO_NHWC),
            # The kernel takes these in float32 alone; the casts are computed when the graph is loaded.
            op.Cast(gamma, to=ir.DataType.FLOAT),
            op.Cast(beta, to=ir.DataType.FLOAT),
            epsilon=normal.producer().attributes.get_float("epsilon"),
            groups=(constant(groups) or [])[1],
            activation=int(self.silu),
            channels_last=1,
            _domain=CONTRIB,
        )
        return op.Transpose(made, perm=TO_NCHW)


class GroupNormSiLU(GroupNorm):
    """The same with x · sigmoid(x) behind it."""

    silu = True


class Convolution:
    """Convolutions on channels that come last, as tensor cores take them. ONNX Runtime computes the transposed weights
    when it loads the graph."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Conv(x, weight, bias, _outputs=["out"])

    def check(self, context: Any, weight: Any, out: Any, **_: Any) -> bool:
        known = weight.const_value is not None and len(weight.const_value.shape) == 4
        return known and out.producer().attributes.get_string("auto_pad", "NOTSET") == "NOTSET"

    def rewrite(self, op: Any, x: Any, weight: Any, bias: Any, out: Any) -> Any:
        attributes = out.producer().attributes
        made = op.NhwcConv(
            op.Transpose(x, perm=TO_NHWC),
            op.Transpose(weight, perm=TO_NHWC),
            bias,
            **{name: attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads", "dilations")},
            group=attributes.get_int("group", 1),
            _domain=CONTRIB,
        )
        return op.Transpose(made, perm=TO_NCHW)


class GatedGelu:
    """A bias, and one half of the channels times the Gelu of the other, as ``BiasSplitGelu``."""

    def pattern(self, op: Any, x: Any, bias: Any) -> Any:
        left, right = op.Split(op.Add(x, bias), axis=2, num_outputs=2, _outputs=2)
        return op.Mul(left, op.Gelu(right, approximate="none"))

    def check(self, context: Any, bias: Any, **_: Any) -> bool:
        return is_vector(bias, BIAS_SPLIT_GELU_WIDTHS)

    def rewrite(self, op: Any, x: Any, bias: Any) -> Any:
        return op.BiasSplitGelu(x, bias, _domain=CONTRIB)


class BiasAdd:
    """A linear layer's bias and the residual connection around it, as ``BiasAdd``."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        return op.Add(residual, op.Add(op.MatMul(x, weight, _outputs=["product"]), bias))

    def check(self, context: Any, bias: Any, **_: Any) -> bool:
        return is_vector(bias, BIAS_ADD_WIDTHS)

    def rewrite(self, op: Any, x: Any, weight: Any, bias: Any, residual: Any, product: Any) -> Any:
        return op.BiasAdd(op.MatMul(x, weight), bias, residual, _domain=CONTRIB)


class ThereAndBack:
    """Channels that are put first and then last again. Those with an Add or a Concat in between are ONNX Runtime's to
    find, which moves transpositions through such nodes when it loads a graph."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(op.Transpose(x, perm=TO_NCHW), perm=TO_NHWC)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


def rule(kind: Any, remove_nodes: bool = True) -> RewriteRule:
    """A rule of an object with ``pattern``, ``rewrite`` and, where not all that fits is meant, ``check``."""
    return RewriteRule(kind.pattern, kind.rewrite, getattr(kind, "check", None), remove_nodes=remove_nodes)


CPU_FUSIONS: tuple[RewriteRule, ...] = (rule(Attention()), rule(CausalAttention()))
CUDA_FUSIONS: tuple[RewriteRule, ...] = (
    *CPU_FUSIONS,
    rule(GroupNormSiLU()),
    rule(GroupNorm()),
    rule(GatedGelu()),
    rule(BiasAdd()),
    rule(Convolution()),
    rule(ThereAndBack(), remove_nodes=False),  # others may read what is put first; it is removed where nobody does
)


def fuse(model: ir.Model, rules: Sequence[RewriteRule]) -> int:
    """Apply each rule wherever it fits, all over the graph before the next.

    Returns:
        How often one did.
    """
    count = sum(RewriteRuleSet([each]).apply_to_model(model) for each in rules)
    common.IdentityEliminationPass()(model)
    return count
