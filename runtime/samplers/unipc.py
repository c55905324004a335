"""UniPC (Zhao et al. 2023), in the B(h) form with B(h) = e^h - 1 ("bh2") and predicted originals, as commonly used."""

from __future__ import annotations

import itertools
import math

import numpy as np

from runtime.noise_schedule import Float64, Level, NoiseSchedule
from runtime.samplers.adams import check_order
from runtime.samplers.rows import COLUMNS, Row, Rows, aged, predictions, sample_at, sum_of


def unipc(schedule: NoiseSchedule, levels: list[Level], solver_order: int = 2) -> Rows:
    """UniP with UniC (Zhao et al. 2023, algorithms 1 and 2); the order falls to one towards the end.

    A step is corrected when the output at its end is known, that is within the next row. The corrected x differs from
    the one that the network saw by predictions that are still in reach.
    """
    check_order("solver_order", solver_order, (1, 2, 3))
    count = len(levels) - 1
    history: list[Float64] = []
    predicted, order = np.zeros(COLUMNS), 0
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        x0, _ = predictions(now, schedule.prediction_type)
        history = [x0, *history]
        x = sample_at(now)
        if i > 0:  # of the order that the step was predicted with
            x = x + correct(levels, i, history[: order + 1]) - predicted
        order = min(solver_order, count - i, i + 1)
        predicted = predict(levels, i, history[:order])
        yield Row(now, following.signal_scale * (following.sigma / now.sigma * x + predicted))
        predicted, history = aged(predicted), [aged(past) for past in history[:3]]


def predict(levels: list[Level], i: int, history: list[Float64]) -> Float64:
    """What the predicted originals at levels i, i-1 ... contribute to the step from level i to the next."""
    return contribution(levels[i], levels[i + 1], levels[:i][::-1], history[0], history[1:])


def correct(levels: list[Level], i: int, history: list[Float64]) -> Float64:
    """What those at levels i, i-1 ... contribute to the step from level i-1 to i, now that the one at i is known."""
    newest, base, *older = history
    return contribution(
        levels[i - 1], levels[i], [*levels[: i - 1][::-1][: len(older)], levels[i]], base, [*older, newest]
    )


def contribution(start: Level, end: Level, others: list[Level], base: Float64, values: list[Float64]) -> Float64:
    """(1 - e^(-h)) · (D + Σ ρ_k (D_k - D) / r_k) with D predicted at the start, and D_k at r_k·h from there."""
    loss = 1 - end.sigma / start.sigma
    if not values:
        return loss * base
    h = math.log(start.sigma / end.sigma)
    ratios = np.array([math.log(start.sigma / other.sigma) / h for other, _ in zip(others, values, strict=False)])
    rho = coefficients(ratios, h)
    return loss * (base + sum_of(rho / ratios, [value - base for value in values]))


def coefficients(ratios: Float64, h: float) -> Float64:
    """ρ such that Σ_k ρ_k r_k^j = b_j for j = 0 .. n-1, the condition for the order; for n = 1 the authors take 1/2."""
    if len(ratios) == 1:
        return np.array([0.5])
    phi = math.expm1(-h) / -h - 1  # h φ_2, then h² φ_3 ...
    b, factorial = [], 1
    for j in range(1, len(ratios) + 1):
        b.append(phi * factorial / math.expm1(-h))
        factorial *= j + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(b))
