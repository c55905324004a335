"""Plans for a model: compiled with its defaults, or brought along and compared with it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import RequestError
from runtime.plan import Plan, compile_plan, find_sampler, rescale_zero_terminal_snr

# Some samplers round the timestep they tell or cut its fraction off, which moves it by less than one.
MAX_TIMESTEP_ERROR = 1.0 + 1e-6


def plan_for(
    bundle: Bundle, /, sampler: str | None = None, num_inference_steps: int | None = None, **options: Any
) -> Plan:
    """Compile a plan for a bundle; what is not said is the bundle's default.

    The number of steps is the bundle's if the sampler is, under whichever of its names; else it is the sampler's.

    Raises:
        RequestError: an argument is unknown or out of range.
    """
    defaults = bundle.defaults
    sampler = defaults.sampler if sampler is None else sampler
    if num_inference_steps is None and find_sampler(sampler) == find_sampler(defaults.sampler):
        num_inference_steps = defaults.num_inference_steps
    return compile_plan(bundle.noise_schedule, sampler, num_inference_steps, **options)


def plan_sha256(plan: Plan) -> str:
    """SHA-256 of the file that ``python -m runtime plan --json -o FILE`` writes of a plan, in hexadecimal."""
    return hashlib.sha256(f"{json.dumps(plan.to_json())}\n".encode()).hexdigest()


def check_plan(bundle: Bundle, plan: Plan, from_image: bool = False) -> None:
    """Refuse a plan that was made for another model, or that begins at an image where there is none.

    Raises:
        RequestError: the network predicts something else, or was trained with other noise at the plan's timesteps.
    """
    own_type = bundle.noise_schedule.prediction_type
    if plan.options.get("strength", 1) != 1 and not from_image:
        raise RequestError(f"the plan begins at an image (strength {plan.options['strength']}), and there is none")
    if plan.prediction_type != own_type:
        raise RequestError(f"the plan is for {plan.prediction_type} models; {bundle.name} predicts {own_type}")
    last = bundle.noise_schedule.num_train_timesteps - 1
    outside = plan.timesteps[(plan.timesteps < 0) | (plan.timesteps > last)]
    if len(outside):
        raise RequestError(
            f"the plan has timestep {outside[0]:g}, but {bundle.name} has 0 to {last}; "
            "the plan was made for another model"
        )
    check_levels(bundle, plan)


def check_levels(bundle: Bundle, plan: Plan) -> None:
    """Refuse a plan whose rows have another noise than the network was trained with at their timesteps.

    Raises:
        RequestError: with the first such row.
    """
    schedule = bundle.noise_schedule
    if plan.options.get("rescale_betas_zero_snr") is True:
        schedule = rescale_zero_terminal_snr(schedule)
    with np.errstate(divide="ignore"):  # no signal is an infinite sigma, which lies beyond the last timestep
        sigmas = np.abs(plan.noise_scales[:-1]) / np.abs(plan.signal_scales[:-1])
        expected = schedule.timesteps_at(sigmas)
    wrong = np.flatnonzero(np.abs(expected - plan.timesteps) > MAX_TIMESTEP_ERROR)
    if len(wrong):
        i = wrong[0]
        raise RequestError(
            f"row {i} of the plan tells timestep {plan.timesteps[i]:g} at sigma {sigmas[i]:.4g}, which {bundle.name} "
            f"has at timestep {expected[i]:.4g}; the plan was made for another model"
        )
