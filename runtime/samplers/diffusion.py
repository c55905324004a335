"""Samplers of the models' own papers, over their training timesteps: DDPM, DDIM, PNDM."""

from __future__ import annotations

import itertools
import math

from runtime.errors import RequestError
from runtime.limits import check_choice, is_finite_number
from runtime.noise_schedule import Float64, Level, NoiseSchedule
from runtime.samplers.rows import NOISE, OUTPUT, SAMPLE, Row, Rows, aged, predictions, sum_of, unit


def ddim(schedule: NoiseSchedule, levels: list[Level], eta: float = 0.0) -> Rows:
    """DDIM (Song et al. 2021, eqs. 12 and 16): eta 0 is deterministic, eta 1 has the variance of DDPM."""
    if not is_finite_number(eta) or eta < 0:
        raise RequestError(
            f"eta is {eta}; it must be a number of at least 0 (0 is deterministic, 1 is DDPM's variance)"
        )
    eta = float(eta)  # whose square may be infinite, and is no error
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        after, before = now.alpha_cumprod, following.alpha_cumprod
        variance = eta * eta * (1 - before) / (1 - after) * (1 - after / before)
        if not variance <= 1 - before:  # it may be infinite, or infinite times 0
            raise RequestError(
                f"eta {eta} asks for more noise than there is at timestep {now.timestep:g}; 1 is always possible"
            )
        mean = following.signal_scale * x0 + math.sqrt(1 - before - variance) * eps
        yield Row(now, mean + math.sqrt(variance) * unit(NOISE))


def ddpm(schedule: NoiseSchedule, levels: list[Level], variance: str = "posterior") -> Rows:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 with eq. 7), over all levels or a subsequence of them.

    ``variance`` is "posterior" (β̃) or "beta" (β), the two choices of their section 3.2. The last row draws nothing.
    """
    check_choice("variance", variance, ("posterior", "beta"))
    for now, following in itertools.pairwise(levels):
        x0, _ = predictions(now, schedule.prediction_type)
        after, before = now.alpha_cumprod, following.alpha_cumprod
        alpha = after / before
        beta = 1 - alpha
        mean = math.sqrt(before) * beta / (1 - after) * x0 + math.sqrt(alpha) * (1 - before) / (1 - after) * unit(
            SAMPLE
        )
        sigma_squared = beta if variance == "beta" else (1 - before) / (1 - after) * beta
        is_last = following is levels[-1]
        yield Row(now, mean + (0 if is_last else math.sqrt(sigma_squared)) * unit(NOISE))


# Adams-Bashforth's weights of the last one to four outputs, newest first (Liu et al. 2022, eq. 12).
ADAMS_BASHFORTH = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """PNDM with linear multistep from the start (PLMS): Liu et al. 2022, eqs. 9 and 12, without Runge-Kutta steps.

    This is what Stable Diffusion was published with. The first step is done twice, the second time with the mean of the
    outputs at both of its ends, so that there is one row more than steps. As in diffusers it is the raw outputs that
    are averaged, which keeps the order for epsilon only: what v and the sample mean changes with the level.
    """

    def transfer(start: Level, end: Level, sample: Float64, output: Float64) -> Float64:
        x0, eps = predictions(start, schedule.prediction_type, sample, output)
        return end.signal_scale * x0 + end.noise_scale * eps

    x, o = unit(SAMPLE), unit(OUTPUT)
    first = transfer(levels[0], levels[1], x, o)
    yield Row(levels[0], first)
    if len(levels) == 2:
        return
    yield Row(levels[1], transfer(levels[0], levels[1], aged(x), (o + aged(o)) / 2))
    # o_0 is needed once more when it is four rows old and out of reach. But x_1 and x_2 come from the same step, once
    # with o_0 and once with the mean of o_0 and o_1, so that their difference still tells it.
    history = [unit(OUTPUT + 1) + 2 / first[OUTPUT] * (unit(SAMPLE + 1) - unit(SAMPLE))]
    for now, following in itertools.pairwise(levels[1:]):
        history = [o, *history]
        output = sum_of(ADAMS_BASHFORTH[len(history) - 1], history)
        yield Row(now, transfer(now, following, x, output))
        history = [aged(past) for past in history[:3]]
