"""Data whose diffusion is known in closed form: a mixture of three Gaussians in one dimension."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from runtime.noise_schedule import Level, NoiseSchedule
from runtime.samplers import SAMPLERS

Float64 = npt.NDArray[np.float64]

SHARES, MEANS, DEVIATIONS = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.5, 1.2]), np.array([0.4, 0.3, 0.5])
MEAN = SHARES @ MEANS
DEVIATION = np.sqrt(SHARES @ (DEVIATIONS**2 + (MEANS - MEAN) ** 2))

SCHEDULE = NoiseSchedule(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
LARGEST, SMALLEST = 14.0, 0.05  # σ between which the flow is followed


def original(x: Float64, sigma: float) -> Float64:
    """E[x_0 | x_0 + σ·ε = x], float64 (K,): the posterior means of the three, by their posterior shares."""
    variances = DEVIATIONS**2 + sigma**2
    logits = np.log(SHARES / np.sqrt(variances)) - (x[:, None] - MEANS) ** 2 / (2 * variances)
    posterior = np.exp(logits - logits.max(axis=1, keepdims=True))
    means = MEANS + DEVIATIONS**2 / variances * (x[:, None] - MEANS)
    return np.asarray((posterior * means).sum(axis=1) / posterior.sum(axis=1))


def output(x: Float64, signal_scale: float, noise_scale: float, prediction_type: str = "epsilon") -> Float64:
    """What a perfect network says of samples x = s·x_0 + n·ε."""
    x0 = original(x / signal_scale, noise_scale / signal_scale)
    eps = (x - signal_scale * x0) / noise_scale
    return {"epsilon": eps, "v_prediction": signal_scale * eps - noise_scale * x0, "sample": x0}[prediction_type]


@cache
def exact_flow() -> tuple[Float64, Float64]:
    """Points at σ = LARGEST and where the probability flow leads from them at σ = SMALLEST, in the scale x_0 + σ·ε."""
    start = LARGEST * np.random.default_rng(0).standard_normal(40)
    ends = np.log(LARGEST), np.log(SMALLEST)
    flow = solve_ivp(lambda u, x: x - original(x, np.exp(u)), ends, start, "DOP853", rtol=1e-12, atol=1e-12)
    return start, np.asarray(flow.y[:, -1])


def combined(weights: Float64, samples: list[Float64], outputs: list[Float64], noise: Float64 | None = None) -> Float64:
    """A row of a plan; samples and outputs are newest first."""
    terms = [*samples[:4], *[None] * (4 - len(samples[:4])), *outputs[:4], *[None] * (4 - len(outputs[:4])), noise]
    return np.asarray(sum(weight * term for weight, term in zip(weights, terms, strict=True) if weight != 0))


def errors(sampler: str, counts: tuple[int, ...], **options: object) -> Iterator[float]:
    """The mean error of a sampler without noise, for numbers of steps between LARGEST and SMALLEST, equal in log σ."""
    start, expected = exact_flow()
    for count in counts:
        sigmas = np.exp(np.linspace(np.log(LARGEST), np.log(SMALLEST), count + 1))
        levels: list[Level] = [SCHEDULE.level_at(float(sigma)) for sigma in sigmas]
        samples, outputs = [start * levels[0].signal_scale], []
        for level, weights in SAMPLERS[sampler].rows(SCHEDULE, levels, **options):
            outputs.insert(0, output(samples[0], level.signal_scale, level.noise_scale))
            samples.insert(0, combined(weights, samples, outputs))
        yield float(np.abs(samples[0] / levels[-1].signal_scale - expected).mean())
