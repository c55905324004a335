"""Samplers of k-diffusion that step in σ: Euler, Heun and DPM2, and the ancestral forms of the first and the last.

With x̂ = x_0 + σ·ε the probability flow is dx̂/dσ = ε (Karras et al. 2022, eqs. 1 and 3 for σ(t) = t), so that ε is the
slope. Each ends with a step of Euler where σ reaches 0, since there is no slope to be had there.
"""

from __future__ import annotations

import itertools
import math

from runtime.errors import RequestError
from runtime.limits import is_finite_number
from runtime.noise_schedule import Level, NoiseSchedule
from runtime.samplers.rows import NOISE, Row, Rows, aged, predictions, sample_at, unit


def euler(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """Euler's method (Karras et al. 2022, algorithm 1 without its correction); the same step as DDIM's."""
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        yield Row(now, following.signal_scale * (x0 + following.sigma * eps))


def ancestral_sigmas(start: float, end: float, eta: float = 1.0) -> tuple[float, float]:
    """The σ to step down to, and how much noise then leads back up to ``end``; their squares sum to end².

    For eta 1 the two are the mean and the variance of Ho et al. 2020, eq. 7, in terms of σ.
    """
    up = eta * end * math.sqrt(1 - (end / start) ** 2)
    return math.sqrt(end**2 - up**2), up


def check_eta(eta: float) -> None:
    if not is_finite_number(eta) or not 0 <= eta <= 1:
        raise RequestError(f"eta is {eta}; it must be a number from 0 (no fresh noise) to 1")


def euler_ancestral(schedule: NoiseSchedule, levels: list[Level], eta: float = 1.0) -> Rows:
    """Euler's method to below the next level, then fresh noise up to it; eta is the share of fresh noise."""
    check_eta(eta)
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        down, up = ancestral_sigmas(now.sigma, following.sigma, eta)
        yield Row(now, following.signal_scale * (x0 + down * eps + up * unit(NOISE)))


def heun(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """Heun's method: two rows a step, Euler's and one with the mean slope (Karras et al. 2022, algorithm 1)."""
    for now, following in itertools.pairwise(levels):
        x0, slope = predictions(now, schedule.prediction_type)
        yield Row(now, following.signal_scale * (x0 + following.sigma * slope))
        if following.sigma == 0:
            return
        start, slope = aged(sample_at(now)), aged(slope)
        _, slope_there = predictions(following, schedule.prediction_type)
        mean = (slope + slope_there) / 2
        yield Row(following, following.signal_scale * (start + (following.sigma - now.sigma) * mean))


def dpm2(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1) in k-diffusion's form: two rows a step, the second with the slope at
    the geometric mean of both levels."""
    return midpoint(schedule, levels, eta=0)


def dpm2_ancestral(schedule: NoiseSchedule, levels: list[Level], eta: float = 1.0) -> Rows:
    """``dpm2`` to below the next level, then fresh noise up to it; eta is the share of fresh noise."""
    check_eta(eta)
    return midpoint(schedule, levels, eta)


def midpoint(schedule: NoiseSchedule, levels: list[Level], eta: float) -> Rows:
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        if following.sigma == 0:
            yield Row(now, x0)
            return
        down, up = ancestral_sigmas(now.sigma, following.sigma, eta)
        middle = schedule.level_at(math.sqrt(now.sigma * down))
        yield Row(now, middle.signal_scale * (x0 + middle.sigma * eps))
        _, slope = predictions(middle, schedule.prediction_type)
        ahead = aged(sample_at(now)) + (down - now.sigma) * slope + up * unit(NOISE)
        yield Row(middle, following.signal_scale * ahead)
