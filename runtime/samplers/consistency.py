"""Samplers of distilled networks: LCM and TCD. They jump to a cleaner level, then add fresh noise."""

from __future__ import annotations

import itertools
import math

from runtime.noise_schedule import Level, NoiseSchedule
from runtime.samplers.k_diffusion import check_eta
from runtime.samplers.rows import NOISE, SAMPLE, Row, Rows, predictions, unit

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10  # LCM's timesteps are scaled by it within the boundary condition


def lcm(schedule: NoiseSchedule, levels: list[Level]) -> Rows:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, algorithm 3).

    Its prediction is c_skip·x + c_out·x_0 with the boundary condition of Song et al. 2023, eq. 5.
    """
    for now, following in itertools.pairwise(levels):
        x0, _ = predictions(now, schedule.prediction_type)
        scaled = now.timestep * TIMESTEP_SCALING
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        denoised = c_skip * unit(SAMPLE) + c_out * x0
        yield Row(now, following.signal_scale * denoised + following.noise_scale * unit(NOISE))


def tcd(schedule: NoiseSchedule, levels: list[Level], eta: float = 0.3) -> Rows:
    """Trajectory consistency with strategic stochastic sampling (Zheng et al. 2024); eta is the paper's γ.

    A step goes down to timestep ⌊(1 - γ)·t'⌋ by DDIM and back up to t' with fresh noise; the last one draws nothing.
    """
    check_eta(eta)
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, schedule.prediction_type)
        below = following
        if eta > 0 and following is not levels[-1]:
            step = math.floor((1 - eta) * following.timestep)
            below = Level(step, float(schedule.alphas_cumprod[step]))
        kept = following.alpha_cumprod / below.alpha_cumprod
        jump = below.signal_scale * x0 + below.noise_scale * eps
        yield Row(now, math.sqrt(kept) * jump + math.sqrt(1 - kept) * unit(NOISE))
