"""What a LoRA adds to a weight, from the factors that it stores.

Shapes: a weight is (out, in) of a linear layer or (out, in, h, w) of a convolution; r is the rank. All arithmetic is in
float64, so that nothing is rounded but the sum.

    LoRA     up @ down                                     Hu et al. 2021, equation 3
    LoHa     (w1_a @ w1_b) * (w2_a @ w2_b)                 Hyeon-Woo et al. 2022, "FedPara", proposition 1
    LoKr     w1 (x) w2, the Kronecker product              Yeh et al. 2024, "LyCORIS", section 3

Each of them may keep the h and w of a convolution in a core (r, r, h, w) of its own: Tucker's decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]
Shape = tuple[int, ...]

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR_FIRST = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
LOKR_SECOND = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))

# The sets of factors that make a whole.
WHOLES: tuple[frozenset[str], ...] = (
    frozenset({"down", "up"}),
    frozenset({"down", "mid", "up"}),
    frozenset(LOHA),
    frozenset({*LOHA, "hada_t1", "hada_t2"}),
    *(frozenset(first + second) for first in LOKR_FIRST for second in LOKR_SECOND),
)

# The factors whose rows are the rank. LoKr may store two full matrices, which have none.
ROWS_ARE_RANK = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


def rank(factors: Factors) -> int | None:
    """The rank of a whole set of factors, or None where nothing was decomposed."""
    return next((factors[name].shape[0] for name in ROWS_ARE_RANK if name in factors), None)


def expected_shapes(factors: Factors, weight: Shape) -> dict[str, Shape]:
    """The shapes that a whole set of factors, each of two dimensions or more, must have to change a weight."""
    r, out, kernel = rank(factors) or 0, weight[0], weight[2:]
    if "mid" in factors:
        return {"down": (r, weight[1]), "mid": (r, r, *kernel), "up": (out, r)}
    if "down" in factors:
        return {"down": (r, *weight[1:]), "up": (out, r)}
    if "hada_w1_a" in factors:
        return second_shapes("hada_w1", "hada_t1", factors, weight, r) | second_shapes(
            "hada_w2", "hada_t2", factors, weight, r
        )
    if "lokr_w1" in factors:
        rows, columns = factors["lokr_w1"].shape[:2]
        first: dict[str, Shape] = {"lokr_w1": (rows, columns)}
    else:
        rows, columns = factors["lokr_w1_a"].shape[0], factors["lokr_w1_b"].shape[1]
        first = {"lokr_w1_a": (rows, r), "lokr_w1_b": (r, columns)}
    second = (divided(out, rows), divided(weight[1], columns), *kernel)
    return first | second_shapes("lokr_w2", "lokr_t2", factors, second, r)


def second_shapes(name: str, core: str, factors: Factors, shape: Shape, r: int) -> dict[str, Shape]:
    """Of the factors of a whole matrix: itself, or two whose product it is, or a core between two."""
    if name in factors:
        return {name: shape}
    if core in factors:  # then the first matrix lies on its side
        return {core: (r, r, *shape[2:]), f"{name}_a": (r, shape[0]), f"{name}_b": (r, shape[1])}
    return {f"{name}_a": (shape[0], r), f"{name}_b": (r, *shape[1:])}


def divided(size: int, by: int) -> int:
    """The quotient, or a size that nothing has."""
    return size // by if by and size % by == 0 else -1


def fits(factor: Tensor, expected: Shape) -> bool:
    """Whether a factor has a shape, or the same numbers in another: a 1 x 1 convolution's, or flattened to a matrix."""
    shape = without_ones(factor.shape)
    return shape in (without_ones(expected), (expected[0], math.prod(expected[1:])))


def without_ones(shape: Shape) -> Shape:
    """The shape of a linear layer, of that of a 1 x 1 convolution; others as they are."""
    return tuple(shape[:2]) if math.prod(shape[2:]) == 1 else tuple(shape)


def difference(factors: Factors, weight: Shape) -> Tensor:
    """What factors of the expected shapes add to a weight at scale 1: float64, in the weight's shape."""
    if "mid" in factors:
        return tucker(factors["mid"], factors["up"], factors["down"]).reshape(weight)
    if "down" in factors:
        return product(factors["up"], factors["down"]).reshape(weight)
    if "hada_w1_a" in factors:
        one, two = matrix("hada_w1", "hada_t1", factors), matrix("hada_w2", "hada_t2", factors)
        return (one * two).reshape(weight)
    first, second = matrix("lokr_w1", "lokr_t1", factors), matrix("lokr_w2", "lokr_t2", factors)
    rows, columns = first.shape
    blocks = second.reshape(weight[0] // rows, 1, weight[1] // columns, -1)  # (k, 1, n, h · w)
    return torch.kron(first[:, None, :, None].contiguous(), blocks.contiguous()).reshape(weight)


def matrix(name: str, core: str, factors: Factors) -> Tensor:
    """A matrix (out, in · h · w) that may be stored whole or in factors."""
    if name in factors:
        return factors[name].double().flatten(1)
    left, right = factors[f"{name}_a"], factors[f"{name}_b"]
    return tucker(factors[core], left.flatten(1).T, right) if core in factors else product(left, right)


def product(left: Tensor, right: Tensor) -> Tensor:
    """(out, r), (r, in, h, w) -> (out, in · h · w)."""
    return left.double().flatten(1) @ right.double().flatten(1)


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(r, r, h, w), (out, r), (r, in) -> (out, in · h · w)."""
    half = product(left, core).reshape(len(left), len(right), -1)  # (out, r, h · w)
    whole = half.transpose(1, 2) @ right.double().flatten(1)  # (out, h · w, in)
    return whole.transpose(1, 2).flatten(1)
