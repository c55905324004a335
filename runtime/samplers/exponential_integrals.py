"""The integrals that Adams methods are made of: of Lagrange's polynomials, times an exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.polynomial import Polynomial


def lagrange_integrals(nodes: Sequence[float], start: float, end: float, rate: float) -> list[float]:
    """∫ e^(rate·(u - end)) ℓ_k(u) du from start to end, where ℓ_k is 1 at nodes[k] and 0 at the other nodes."""
    shifted = [node - end for node in nodes]  # polynomials about their end lose fewer digits
    integrals = []
    for k, node in enumerate(shifted):
        others = shifted[:k] + shifted[k + 1 :]
        polynomial = Polynomial([1.0])
        for other in others:
            polynomial = polynomial * Polynomial([-other, 1]) / (node - other)
        integrals.append(exponential_integral(polynomial, start - end, rate))
    return integrals


def exponential_integral(polynomial: Polynomial, start: float, rate: float) -> float:
    """∫ e^(rate·u) p(u) du from start to 0, by parts."""
    if rate == 0:
        antiderivative = polynomial.integ()
        return float(antiderivative(0) - antiderivative(start))
    total, factor = 0.0, 1 / rate
    while polynomial.degree() > 0 or polynomial.coef[0] != 0:
        total += factor * (polynomial(0) - math.exp(rate * start) * polynomial(start))
        polynomial, factor = polynomial.deriv(), -factor / rate
    return float(total)
