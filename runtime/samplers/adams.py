"""Samplers that integrate a polynomial through the last predictions: LMS, DEIS, and the stochastic SA-Solver."""

from __future__ import annotations

import itertools
import math

import numpy as np

from runtime.errors import RequestError
from runtime.limits import is_finite_number
from runtime.noise_schedule import Float64, Level, NoiseSchedule
from runtime.samplers.dpm_solver import FEW_STEPS
from runtime.samplers.exponential_integrals import lagrange_integrals
from runtime.samplers.rows import COLUMNS, NOISE, Row, Rows, aged, predictions, sample_at, sum_of, unit


def check_order(name: str, order: object, allowed: tuple[int, ...]) -> None:
    if order not in allowed:
        raise RequestError(f"{name} is {order}; choose {', '.join(map(str, allowed))}")


def lms(schedule: NoiseSchedule, levels: list[Level], solver_order: int = 4) -> Rows:
    """Adams-Bashforth in σ over the last slopes, for steps of any length (k-diffusion's linear multistep)."""
    check_order("solver_order", solver_order, (1, 2, 3, 4))
    history: list[Float64] = []
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        _, slope = predictions(now, schedule.prediction_type)
        history = [slope, *history]
        nodes = [level.sigma for level in levels[: i + 1][::-1][: len(history)]]
        weights = lagrange_integrals(nodes, now.sigma, following.sigma, rate=0)
        yield Row(now, following.signal_scale * (sample_at(now) + sum_of(weights, history)))
        history = [aged(past) for past in history[: solver_order - 1]]


def deis(schedule: NoiseSchedule, levels: list[Level], solver_order: int = 2) -> Rows:
    """DEIS (Zhang & Chen 2023) with polynomials in log ρ, where ρ is what is σ here.

    It ends at the level of timestep 0, and with a sigma_spacing at the last level, so that the last row repeats x: both
    as in diffusers. With ``final_sigmas_type`` "zero" the last row is of first order.
    """
    check_order("solver_order", solver_order, (1, 2, 3))
    history: list[Float64] = []
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        x0, eps = predictions(now, schedule.prediction_type)
        history = [eps, *history]
        left = len(levels) - 1 - i
        if following.sigma == 0:
            yield Row(now, x0)
            return
        reach = min(len(history), left) if len(levels) - 1 < FEW_STEPS else len(history)
        nodes = [math.log(level.sigma) for level in levels[: i + 1][::-1][:reach]]
        weights = lagrange_integrals(nodes, nodes[0], math.log(following.sigma), rate=1)
        slope = sum_of(weights, history[:reach])
        yield Row(now, following.signal_scale * (sample_at(now) + following.sigma * slope))
        history = [aged(past) for past in history[: solver_order - 1]]


def sa_solver(
    schedule: NoiseSchedule,
    levels: list[Level],
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_start: float = 200,
    tau_end: float = 800,
) -> Rows:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams-Bashforth, corrected by Adams-Moulton.

    Args:
        schedule, levels: as for every sampler; it ends where ``deis`` does, and corrects x at a repeated level.
        predictor_order: 1 to 3. corrector_order: 1 to 4. tau: how much noise is drawn, 0 none, 1 as much as the reverse
        SDE, between the timesteps tau_start and tau_end; none elsewhere.
    A step is corrected when the output at its end is known, that is within the next row. The corrected x differs from
    the one that the network saw by predictions that are still in reach.
    """
    check_order("predictor_order", predictor_order, (1, 2, 3))
    check_order("corrector_order", corrector_order, (1, 2, 3, 4))
    for name, value in (("tau", tau), ("tau_start", tau_start), ("tau_end", tau_end)):
        if not is_finite_number(value) or value < 0:
            raise RequestError(f"{name} is {value}; it must be a number of at least 0")
    count = len(levels) - 1
    history: list[Float64] = []
    predicted, strength = np.zeros(COLUMNS), 0.0
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        x0, _ = predictions(now, schedule.prediction_type)
        history = [x0, *history]
        x = sample_at(now)
        if i > 0:
            order = min(corrector_order, count - i + 2, i + 1)
            x = x + adams_moulton(levels, i, history[:order], strength) - predicted
        strength = tau if tau_start <= now.timestep <= tau_end else 0.0
        order = min(predictor_order, count - i, i + 1)
        predicted = adams_bashforth(levels, i, history[:order], strength)
        decay = following.sigma / now.sigma  # e^(-h)
        noise = following.sigma * math.sqrt(1 - decay ** (2 * strength**2)) * unit(NOISE)
        yield Row(now, following.signal_scale * (decay ** (1 + strength**2) * x + predicted + noise))
        predicted, history = aged(predicted), [aged(past) for past in history[:3]]


def adams_bashforth(levels: list[Level], i: int, history: list[Float64], strength: float) -> Float64:
    """What the predicted originals at levels i, i-1 ... contribute to the step from level i to the next."""
    if levels[i + 1].sigma == 0:
        return history[0]
    nodes = [-math.log(level.sigma) for level in levels[: i + 1][::-1][: len(history)]]
    end, rate = -math.log(levels[i + 1].sigma), 1 + strength**2
    total = sum_of([rate * weight for weight in lagrange_integrals(nodes, nodes[0], end, rate)], history)
    if len(history) == 2:
        total = total + (history[0] - history[1]) * rate * deviation(end - nodes[0], rate) / (nodes[0] - nodes[1])
    return total


def adams_moulton(levels: list[Level], i: int, history: list[Float64], strength: float) -> Float64:
    """What those at levels i, i-1 ... contribute to the step from level i-1 to i, now that the one at i is known."""
    nodes = [-math.log(level.sigma) for level in levels[: i + 1][::-1][: max(len(history), 2)]]
    rate, h = 1 + strength**2, nodes[0] - nodes[1]
    weights = lagrange_integrals(nodes[: len(history)], nodes[1], nodes[0], rate)
    total = sum_of([rate * weight for weight in weights], history)
    if len(history) == 2:
        total = total + (history[0] - history[1]) * rate * deviation(h, rate) / h
    return total


def deviation(h: float, rate: float) -> float:
    """What the authors' code adds to the integral of order two: h²/2 in place of ∫ e^(rate·(u - h)) u du, from 0 to h.

    The difference is of third order in h and so does not change the order of the method (Xue et al. 2023, appendix).
    """
    return h**2 / 2 - (h * rate - 1 + math.exp(-rate * h)) / rate**2
