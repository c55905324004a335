"""Rules that space noise levels by σ; each returns falling σ, float64 (count,)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# The levels for Stable Diffusion 1.5 that Sabour et al. (2024) found by minimising a bound of the error of ten steps,
# and the timesteps they give for them; the levels of those are not quite the same.
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_TIMESTEPS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)


def karras(most: float, least: float, count: int) -> Float64:
    """Equal steps of σ^(1/7) (Karras et al. 2022, eq. 5)."""
    rho = 7
    return np.linspace(most ** (1 / rho), least ** (1 / rho), count) ** rho


def exponential(most: float, least: float, count: int) -> Float64:
    """Equal steps of log σ."""
    return np.exp(np.linspace(math.log(most), math.log(least), count))


def beta(most: float, least: float, count: int) -> Float64:
    """Quantiles of a Beta(0.6, 0.6) distribution: denser at both ends (Lee et al. 2024)."""
    quantiles = [beta_quantile(1 - k / max(count - 1, 1), 0.6) for k in range(count)]
    return least + np.array(quantiles) * (most - least)


def align_your_steps(published: npt.ArrayLike, count: int) -> Float64:
    """The published levels; for other counts than ten interpolated log-linearly, as their authors advise."""
    positions = np.linspace(0, 1, len(ALIGN_YOUR_STEPS))
    return np.exp(np.interp(np.linspace(0, 1, count + 1), positions, np.log(published)))[:-1]


def beta_quantile(probability: float, shape: float) -> float:
    """Where the distribution function of Beta(shape, shape) has this value, by bisection.

    Up to 1/2 the function is x^a / (a B) · Σ (1 - a)_n / n! · a / (a + n) · x^n (DLMF 8.17.7), whose terms halve at
    least; beyond, its mirror image.
    """
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability, shape)
    n = np.arange(60)
    terms = np.cumprod(np.append(1, (n[:-1] + 1 - shape) / (n[:-1] + 1))) * shape / (shape + n)
    scale = math.gamma(2 * shape) / math.gamma(shape) ** 2 / shape
    below, above = 0.0, 0.5
    for _ in range(60):
        middle = (below + above) / 2
        reached = scale * middle**shape * float(terms @ middle**n)
        below, above = (middle, above) if reached < probability else (below, middle)
    return (below + above) / 2


SPACED_BY_ENDS: dict[str, Callable[[float, float, int], Float64]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
}
SIGMA_SPACINGS = (*SPACED_BY_ENDS, "align_your_steps")
