"""DPM-Solver++ (Lu et al. 2022b): the predicted original sample is extrapolated in λ = -log σ, the rest is exact.

All are written for x̂ = x_0 + σ·ε. From σ to σ' with h = λ' - λ a model that always predicted D would give

    x̂' = e^(-H)·x̂ + (1 - e^(-H))·D + σ'·√(1 - e^(-2h))·z,    H = h for the flow and no z, H = 2h for the SDE.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from runtime.noise_schedule import Float64, Level, NoiseSchedule
from runtime.samplers.k_diffusion import ancestral_sigmas
from runtime.samplers.rows import COLUMNS, NOISE, Row, Rows, aged, predictions, sample_at, unit

FEW_STEPS = 15  # below so many, the last steps are of lower order, which keeps large steps stable


def dpmpp_2m(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2."""
    return multistep(schedule, levels, order=2)


def dpmpp_3m(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """DPM-Solver++(3M): as ``dpmpp_2m`` with a quadratic. As in its authors' code the second difference has half the
    weight that it has in a Taylor series, so that the order is two, with a smaller error than 2M's."""
    return multistep(schedule, levels, order=3)


def dpmpp_2m_sde(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """SDE-DPM-Solver++(2M), Lu et al. 2022b on diffusion SDEs: a draw for each step but the last."""
    return multistep(schedule, levels, order=2, stochastic=True)


def dpmpp_3m_sde(schedule: NoiseSchedule, levels: list[Level], diffusers_sign: bool = False) -> Rows:
    """SDE-DPM-Solver++(3M) as k-diffusion has it.

    diffusers 0.42 subtracts 1/2 where 1/2 is to be added in the weight of the second difference, so that this weight
    tends to -1 and not to 0 for small steps. ``diffusers_sign`` repeats that, for pictures made there.
    """
    return multistep(schedule, levels, order=3, stochastic=True, second=-0.5 if diffusers_sign else 0.5)


def multistep(
    schedule: NoiseSchedule, levels: list[Level], order: int, stochastic: bool = False, second: float = 0.5
) -> Rows:
    history: list[Float64] = []
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        x0, _ = predictions(now, schedule.prediction_type)
        history = [x0, *history]
        decay = following.sigma / now.sigma  # e^(-h)
        loss = 1 - (decay**2 if stochastic else decay)
        ahead = (1 - loss) * sample_at(now) + loss * x0
        reach = min(len(history), order_of_row(levels, i, order))
        if reach > 1:
            past = [level.sigma for level in levels[i + 1 - reach : i + 2]]
            h = [math.log(before / after) for before, after in itertools.pairwise(past)][::-1]
            ahead = ahead + differences(history[:reach], h, loss, 2 * h[0] if stochastic else h[0], second)
        if stochastic:
            ahead = ahead + following.sigma * math.sqrt(1 - decay**2) * unit(NOISE)
        yield Row(now, following.signal_scale * ahead)
        history = [aged(original) for original in history[: order - 1]]


def differences(history: list[Float64], h: list[float], loss: float, H: float, second: float) -> Float64:
    """What the differences of the last two or three predictions add, for steps of lengths h, the newest first."""
    first_difference = (history[0] - history[1]) * h[0] / h[1]
    if len(history) == 2:
        return loss / 2 * first_difference
    earlier_difference = (history[1] - history[2]) * h[0] / h[2]
    second_difference = (first_difference - earlier_difference) * h[0] / (h[1] + h[2])
    slope = first_difference + second_difference * h[1] / h[0]
    weight = 1 - loss / H
    return weight * slope + (second - weight / H) * second_difference


def order_of_row(levels: list[Level], i: int, order: int) -> int:
    """At most one where the step ends at no noise or has no length; below ``FEW_STEPS`` falling to one at the end."""
    count = len(levels) - 1
    if levels[i + 1].sigma in (0, levels[i].sigma):
        return 1
    return min(order, count - i) if count < FEW_STEPS else order


def dpmpp_2s(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1, over pairs of steps, as diffusers' single-step solver has it.

    Every row leads to the next level; every second one starts again from the level before the last with the slope that
    has been learnt meanwhile. So n rows are n/2 steps of second order, and the levels between are x as well.
    """
    start = start_x0 = np.zeros(COLUMNS)
    for i, (now, following) in enumerate(itertools.pairwise(levels)):
        x0, _ = predictions(now, schedule.prediction_type)
        if i % 2 == 0 or following.sigma == 0:
            yield Row(now, following.signal_scale * (x0 + following.sigma / now.sigma * (sample_at(now) - x0)))
        else:
            before = levels[i - 1]
            decay = following.sigma / before.sigma
            difference = (x0 - start_x0) * math.log(decay) / math.log(now.sigma / before.sigma)
            yield Row(now, following.signal_scale * (decay * start + (1 - decay) * (start_x0 + difference / 2)))
        start, start_x0 = aged(sample_at(now)), aged(x0)


def dpmpp_sde(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """k-diffusion's DPM-Solver++ (SDE): two ancestral rows a step, the first to the geometric mean of both levels.

    Both draw from one Brownian path in σ: the noise of the whole step contains that of its first part. A plan has no
    column for a noise that is past, but x of the row before contains it, and the rest of it is known.
    """
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        if following.sigma in (0, now.sigma):
            yield Row(now, following.signal_scale * (x0 + following.sigma * eps))
            return
        middle = schedule.level_at(math.sqrt(now.sigma * following.sigma))
        down, up = ancestral_sigmas(now.sigma, middle.sigma)
        halfway = x0 + down / now.sigma * (sample_at(now) - x0)
        yield Row(now, middle.signal_scale * (halfway + up * unit(NOISE)))
        first_noise = (sample_at(middle) - aged(halfway)) / up
        share = (now.sigma - middle.sigma) / (now.sigma - following.sigma)
        noise = math.sqrt(share) * first_noise + math.sqrt(1 - share) * unit(NOISE)
        x0, _ = predictions(middle, schedule.prediction_type)
        down, up = ancestral_sigmas(now.sigma, following.sigma)
        yield Row(middle, following.signal_scale * (x0 + down / now.sigma * (aged(sample_at(now)) - x0) + up * noise))
