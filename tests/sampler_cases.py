"""Which scheduler of diffusers every sampler is, with which configurations: what the samplers are proven against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from runtime.plan import compile_plan
from tests.diffusers_reference import (
    LINEAR,
    SHAPE,
    STABLE_DIFFUSION,
    largest_difference,
    make_scheduler,
    precision,
    run_diffusers,
    schedule_of,
    scheduler_parameters,
)

NONE: Mapping[str, Any] = MappingProxyType({})
COUNTS = (5, 10, 20, 50)
SCHEDULES = {"stable-diffusion": STABLE_DIFFUSION, "linear": LINEAR}
SIGMA_SPACINGS = (None, "karras", "exponential", "beta")


class Case(NamedTuple):
    """A sampler with options, and the scheduler with a configuration, and options of its ``step``, that is the same.

    ``predicts`` is what the scheduler knows of epsilon, v_prediction and sample.
    """

    sampler: str
    scheduler: str
    options: Mapping[str, Any] = NONE
    config: Mapping[str, Any] = NONE
    step: Mapping[str, Any] = NONE
    predicts: tuple[str, ...] = ("epsilon", "v_prediction", "sample")

    def __str__(self) -> str:
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])


NO_SAMPLE = ("epsilon", "v_prediction")
SDE = {"algorithm_type": "sde-dpmsolver++"}
THIRD = {"solver_order": 3}
CASES = (
    Case("ddpm", "DDPMScheduler", config={"clip_sample": False}),
    Case("ddim", "DDIMScheduler", config={"clip_sample": False, "set_alpha_to_one": False}),
    Case("ddim", "DDIMScheduler", {"eta": 0.6}, {"clip_sample": False}, {"eta": 0.6}),
    Case("pndm", "PNDMScheduler", config={"skip_prk_steps": True}, predicts=NO_SAMPLE),
    Case("lms", "LMSDiscreteScheduler"),
    Case("euler", "EulerDiscreteScheduler"),
    Case("euler_ancestral", "EulerAncestralDiscreteScheduler", predicts=NO_SAMPLE),
    Case("heun", "HeunDiscreteScheduler"),
    Case("dpm2", "KDPM2DiscreteScheduler", predicts=NO_SAMPLE),
    Case("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler", predicts=NO_SAMPLE),
    Case("dpmpp_2m", "DPMSolverMultistepScheduler"),
    Case("dpmpp_3m", "DPMSolverMultistepScheduler", config=THIRD),
    Case("dpmpp_2s", "DPMSolverSinglestepScheduler"),
    Case("dpmpp_sde", "DPMSolverSDEScheduler", config={"noise_sampler_seed": 3}, predicts=NO_SAMPLE),
    Case("dpmpp_2m_sde", "DPMSolverMultistepScheduler", config=SDE),
    Case("dpmpp_3m_sde", "DPMSolverMultistepScheduler", {"diffusers_sign": True}, SDE | THIRD),
    Case("unipc", "UniPCMultistepScheduler"),
    Case("unipc", "UniPCMultistepScheduler", THIRD, THIRD),
    Case("deis", "DEISMultistepScheduler"),
    Case("deis", "DEISMultistepScheduler", THIRD, THIRD),
    Case("sa_solver", "SASolverScheduler"),
    Case("sa_solver", "SASolverScheduler", *[{"predictor_order": 3, "corrector_order": 4}] * 2),
    Case("sa_solver", "SASolverScheduler", *[{"predictor_order": 1, "corrector_order": 1}] * 2),
    Case("lcm", "LCMScheduler"),
    Case("tcd", "TCDScheduler"),
    Case("tcd", "TCDScheduler", {"eta": 0.8}, step={"eta": 0.8}),
)


def timestep_spacings(case: Case) -> tuple[str, ...]:
    """Those in which a sampler and its scheduler are the same, and that make a difference.

    With "linspace", diffusers' DDIM and PNDM step T // N timesteps, which is not where the next row is told to be. Here
    every step leads to the next row's timestep.
    """
    if case.scheduler in ("LCMScheduler", "TCDScheduler"):
        return ("leading",)
    if "timestep_spacing" not in scheduler_parameters(case.scheduler):
        return ("linspace",)
    return ("leading", "trailing") if case.sampler in ("ddim", "pndm") else ("leading", "trailing", "linspace")


def sigma_spacings(case: Case) -> tuple[str | None, ...]:
    known = scheduler_parameters(case.scheduler)
    return tuple(spacing for spacing in SIGMA_SPACINGS if spacing is None or f"use_{spacing}_sigmas" in known)


class Difference(NamedTuple):
    """Between a plan and diffusers: of the samples over all rows, of what the network is told, and of the start."""

    samples: float
    timesteps: float
    start: float


def compare(
    case: Case,
    schedule: str,
    timestep_spacing: str,
    sigma_spacing: str | None,
    prediction_type: str,
    counts: tuple[int, ...] = COUNTS,
    double: bool = True,
    config: Mapping[str, Any] = NONE,
    options: Mapping[str, Any] = NONE,
) -> Iterator[Difference]:
    """Run a case with every number of steps in ``counts``; ``config`` and ``options`` are more of the case's."""
    # The offset is Stable Diffusion's. Not every scheduler has these two.
    spacing = {"timestep_spacing": timestep_spacing, "steps_offset": int(timestep_spacing == "leading")}
    spacing = {name: value for name, value in spacing.items() if name in scheduler_parameters(case.scheduler)}
    spaced = {f"use_{sigma_spacing}_sigmas": True} if sigma_spacing else {}
    with precision(case.scheduler, double):
        scheduler = make_scheduler(
            case.scheduler,
            prediction_type=prediction_type,
            **SCHEDULES[schedule] | spacing | spaced | dict(case.config) | dict(config),
        )
        start = np.random.default_rng(0).standard_normal(SHAPE)
        for count in counts:
            scheduler.set_timesteps(count)
            reference = run_diffusers(scheduler, start, **case.step)
            chosen = {"sigma_spacing": sigma_spacing} if sigma_spacing else {}
            plan = compile_plan(
                schedule_of(scheduler), case.sampler, count, **chosen | dict(case.options) | dict(options)
            )
            yield Difference(
                largest_difference(plan, reference),
                float(np.abs(plan.timesteps - reference.timesteps).max()),
                float(np.abs(plan.initial_scale * start - reference.samples[0]).max()),
            )
