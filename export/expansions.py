"""Operators of ONNX Runtime's own as what they are in standard operators: the inverse of ``export.fusions``.

A graph for CUDA cannot run where there is no GPU. Expanded, it runs anywhere, and what it then computes shows whether
its nodes, attributes and weights are right; only the kernels themselves are left to a GPU. The definitions are those of
ONNX Runtime's documentation of its contrib operators.

Shapes: B batch, L and S lengths of sequences, H heads, E size of a head, D width, C channels, G groups, h w height and
width.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from export.fusions import CONTRIB, SPLIT_HEADS, TO_NCHW, TO_NHWC, rule


class Expansion:
    """An operator of three inputs; a subclass is named as the operator and says what they become."""

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        return getattr(op, type(self).__name__)(a, b, c, _domain=CONTRIB, _outputs=["out"])


class MultiHeadAttention(Expansion):
    def rewrite(self, op: Any, a: Any, b: Any, c: Any, out: Any) -> Any:
        attributes = out.producer().attributes
        split = op.Constant(value_ints=[0, 0, attributes.get_int("num_heads"), -1])
        query, key, value = (op.Transpose(op.Reshape(x, split), perm=SPLIT_HEADS) for x in (a, b, c))  # (B, H, L, E)
        scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))  # (B, H, L, S)
        scores = op.Mul(scores, op.CastLike(op.Constant(value_float=attributes.get_float("scale")), scores))
        if attributes.get_int("unidirectional", 0):
            hidden = op.Expand(op.Constant(value_float=-math.inf), op.Shape(scores, start=2))
            hidden = op.Trilu(hidden, op.Constant(value_int=1), upper=1)
            scores = op.Add(scores, op.CastLike(hidden, scores))
        seen = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), value), perm=SPLIT_HEADS)
        return op.Reshape(seen, op.Constant(value_ints=[0, 0, -1]))  # (B, L, D)


class GroupNorm(Expansion):
    def rewrite(self, op: Any, a: Any, b: Any, c: Any, out: Any) -> Any:
        attributes = out.producer().attributes
        groups = attributes.get_int("groups")
        sample = op.Cast(op.Transpose(a, perm=TO_NCHW), to=ir.DataType.FLOAT)  # (B, C, h, w)
        ones, zeros = op.Constant(value_floats=[1.0] * groups), op.Constant(value_floats=[0.0] * groups)
        grouped = op.Reshape(sample, op.Constant(value_ints=[0, groups, -1]))
        normal = op.InstanceNormalization(grouped, ones, zeros, epsilon=attributes.get_float("epsilon"))
        axes = op.Constant(value_ints=[1, 2])
        scaled = op.Mul(op.Reshape(normal, op.Shape(sample)), op.Unsqueeze(b, axes))
        result = op.Add(scaled, op.Unsqueeze(c, axes))
        if attributes.get_int("activation"):
            result = op.Mul(result, op.Sigmoid(result))
        return op.CastLike(op.Transpose(result, perm=TO_NHWC), a)


class NhwcConv(Expansion):
    def rewrite(self, op: Any, a: Any, b: Any, c: Any, out: Any) -> Any:
        attributes = out.producer().attributes
        made = op.Conv(
            op.Transpose(a, perm=TO_NCHW),
            op.Transpose(b, perm=TO_NCHW),
            c,
            **{name: attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads", "dilations")},
            group=attributes.get_int("group"),
        )
        return op.Transpose(made, perm=TO_NHWC)


class BiasSplitGelu:
    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.BiasSplitGelu(a, b, _domain=CONTRIB)

    def rewrite(self, op: Any, a: Any, b: Any) -> Any:
        left, right = op.Split(op.Add(a, b), axis=-1, num_outputs=2, _outputs=2)
        return op.Mul(left, op.Gelu(right))


class BiasAdd(Expansion):
    def rewrite(self, op: Any, a: Any, b: Any, c: Any, out: Any) -> Any:
        return op.Add(op.Add(a, b), c)


class CastLike:
    """To the type that is known by now. ONNX Runtime has no kernel that looks it up."""

    def pattern(self, op: Any, x: Any, like: Any) -> Any:
        return op.CastLike(x, like)

    def rewrite(self, op: Any, x: Any, like: Any) -> Any:
        return op.Cast(x, to=like.dtype)


EXPANSIONS: tuple[RewriteRule, ...] = tuple(
    rule(kind()) for kind in (MultiHeadAttention, GroupNorm, NhwcConv, BiasSplitGelu, BiasAdd)
)


def expand(model: ir.Model) -> None:
    """Replace all operators of ONNX Runtime's own that ``export.fusions`` writes; others stay as they are."""
    RewriteRuleSet(EXPANSIONS).apply_to_model(model)
    common.ShapeInferencePass()(model)
    RewriteRuleSet([rule(CastLike())]).apply_to_model(model)
