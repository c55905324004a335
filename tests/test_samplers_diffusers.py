"""Proves every sampler against diffusers: the whole loop over a fake network, row by row, given the noise that it drew.

In its own single precision they agree to a hundred-thousandth; with diffusers made to compute in double precision, to
rounding, so that nothing else was between them. Where they differ on purpose, the difference is pinned down.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from runtime.plan import SAMPLERS, NoiseSchedule, compile_plan
from tests.diffusers_reference import (
    SHAPE,
    STABLE_DIFFUSION,
    largest_difference,
    make_scheduler,
    precision,
    run_diffusers,
    schedule_of,
)
from tests.sampler_cases import CASES, SCHEDULES, Case, Difference, compare, sigma_spacings, timestep_spacings

# Schedulers mix NumPy and torch in ways that both have come to advise against.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DOUBLE = Difference(samples=1e-9, timesteps=1e-8, start=1e-12)
# Single precision loses more where DPM2 ancestral takes few large steps: it subtracts two nearly equal squares.
SINGLE = Difference(samples=3e-5, timesteps=1e-3, start=1e-6)
BY_NAME = {str(case): case for case in CASES}


def assert_within(difference: Difference, bound: Difference, where: object) -> None:
    assert all(mine < most for mine, most in zip(difference, bound, strict=True)), (where, difference)


def test_every_sampler_has_a_case() -> None:
    assert {case.sampler for case in CASES} == set(SAMPLERS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_single_precision(case: Case) -> None:
    for prediction_type in case.predicts:
        for difference in compare(case, "stable-diffusion", "leading", None, prediction_type, (10,), double=False):
            assert_within(difference, SINGLE, prediction_type)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_double_precision(case: Case) -> None:
    for sigma_spacing in sigma_spacings(case)[:2]:
        for difference in compare(
            case, "stable-diffusion", timestep_spacings(case)[-1], sigma_spacing, "epsilon", (8,)
        ):
            assert_within(difference, DOUBLE, sigma_spacing)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_double_precision_everywhere(case: Case, schedule: str) -> None:
    for timestep_spacing in timestep_spacings(case):
        for sigma_spacing in sigma_spacings(case):
            for prediction_type in case.predicts:
                for difference in compare(case, schedule, timestep_spacing, sigma_spacing, prediction_type):
                    assert_within(difference, DOUBLE, (timestep_spacing, sigma_spacing, prediction_type))


@pytest.mark.parametrize(
    "name",
    ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"],
)
def test_no_signal_at_the_last_timestep(name: str) -> None:
    differences = compare(
        BY_NAME[name],
        "stable-diffusion",
        "trailing",
        None,
        "v_prediction",
        config={"rescale_betas_zero_snr": True},
        counts=(10,),
    )
    for difference in differences:
        assert_within(difference, DOUBLE, name)


def test_our_rescaling_is_that_of_diffusers() -> None:
    plain, rescaled = (make_scheduler("DDIMScheduler", rescale_betas_zero_snr=on, **STABLE_DIFFUSION) for on in (0, 1))
    schedule = schedule_of(plain)
    mine = compile_plan(
        NoiseSchedule(schedule.alphas_cumprod, "v_prediction"), "ddim", 1000, rescale_betas_zero_snr=True
    )
    np.testing.assert_allclose(mine.signal_scales[:-1][::-1] ** 2, rescaled.alphas_cumprod, rtol=1e-5, atol=1e-7)
    assert mine.signal_scales[0] == 0


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "dpmpp_2s"])
@pytest.mark.parametrize("count", [8, 9, 20])
def test_ending_at_the_last_level_of_training(name: str, count: int) -> None:
    final = {"final_sigmas_type": "sigma_min"}
    case = BY_NAME[name]
    for difference in compare(
        case, "stable-diffusion", timestep_spacings(case)[-1], None, "epsilon", (count,), config=final, options=final
    ):
        assert_within(difference, DOUBLE, name)


@pytest.mark.parametrize("name", ["euler", "unipc"])
@pytest.mark.parametrize("sigma_spacing", ["karras", "exponential", "beta"])
def test_ends_of_the_noise_levels(name: str, sigma_spacing: str) -> None:
    ends = {"sigma_min": 0.05, "sigma_max": 9.0}
    for difference in compare(
        BY_NAME[name], "stable-diffusion", "trailing", sigma_spacing, "epsilon", (12,), config=ends, options=ends
    ):
        assert_within(difference, DOUBLE, sigma_spacing)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "given"),
    [
        ("euler", "EulerDiscreteScheduler", {"sigmas": "StableDiffusionSigmas"}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"timesteps": "StableDiffusionTimesteps"}),
    ],
)
def test_align_your_steps(sampler: str, scheduler: str, given: dict[str, str]) -> None:
    from diffusers.schedulers import AysSchedules

    with precision(scheduler, double=True):
        theirs = make_scheduler(scheduler, **STABLE_DIFFUSION, timestep_spacing="trailing")
        theirs.set_timesteps(**{name: AysSchedules[table] for name, table in given.items()})
        reference = run_diffusers(theirs, np.random.default_rng(0).standard_normal(SHAPE))
    plan = compile_plan(schedule_of(theirs), sampler, 10, sigma_spacing="align_your_steps")
    np.testing.assert_allclose(plan.timesteps, reference.timesteps, atol=1e-6)
    assert largest_difference(plan, reference) < 1e-9


@pytest.mark.parametrize(
    ("name", "rows_a_step"),
    [("euler", 1), ("heun", 2), ("dpm2", 2), ("dpmpp_2m", 1), ("unipc", 1), ("dpmpp_2m_sde", 1), ("deis", 1)],
)
@pytest.mark.parametrize("strength", [0.8, 0.35])
def test_image_to_image_begins_where_diffusers_does(name: str, rows_a_step: int, strength: float) -> None:
    case, count = BY_NAME[name], 12
    with precision(case.scheduler, double=True):
        scheduler = make_scheduler(case.scheduler, **STABLE_DIFFUSION, **case.config, timestep_spacing="leading")
        scheduler.set_timesteps(count)
        begin = rows_a_step * (count - int(count * strength))
        image, noise = np.random.default_rng(0).standard_normal((2, *SHAPE))
        plan = compile_plan(schedule_of(scheduler), case.sampler, count, strength=strength)
        start = plan.signal_scales[0] * image + plan.noise_scales[0] * noise
        noised = scheduler.add_noise(torch.from_numpy(image), torch.from_numpy(noise), scheduler.timesteps[begin][None])
        assert plan.timesteps[0] == scheduler.timesteps[begin]
        reference = run_diffusers(scheduler, start, begin)
    np.testing.assert_allclose(np.corrcoef(noised.numpy().ravel(), start.ravel())[0, 1], 1, atol=1e-12)
    assert largest_difference(plan, reference) < 1e-9


# --- where diffusers is not followed


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_leads_to_the_next_timestep(spacing: str) -> None:
    """diffusers' DDIM steps T // N timesteps down, wherever the next row is; its DPM-Solver++ of order one does not."""
    with precision("DPMSolverMultistepScheduler", double=True):
        scheduler = make_scheduler("DPMSolverMultistepScheduler", solver_order=1, **STABLE_DIFFUSION)
        plan = compile_plan(schedule_of(scheduler), "ddim", 13, spacing)
        scheduler.set_timesteps(timesteps=plan.timesteps.astype(int).tolist())
        reference = run_diffusers(scheduler, np.random.default_rng(0).standard_normal(SHAPE))
    assert largest_difference(plan, reference) < 1e-9


class PNDMToTheNextTimestep(diffusers.PNDMScheduler):
    """diffusers' PNDM, led from every row's timestep to that of the next."""

    def _get_prev_sample(self, sample: Any, timestep: Any, prev_timestep: Any, model_output: Any) -> Any:
        steps = sorted({int(step) for step in self.timesteps}, reverse=True)
        done = max(self.counter - 1, 0)
        following = [*steps[1:], -1][done]
        return super()._get_prev_sample(sample, steps[done], following, model_output)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_pndm_leads_to_the_next_timestep(spacing: str, prediction_type: str) -> None:
    with precision("PNDMScheduler", double=True):
        scheduler = PNDMToTheNextTimestep(
            **STABLE_DIFFUSION, skip_prk_steps=True, timestep_spacing=spacing, prediction_type=prediction_type
        )
        scheduler.set_timesteps(13)
        reference = run_diffusers(scheduler, np.random.default_rng(0).standard_normal(SHAPE))
    assert largest_difference(compile_plan(schedule_of(scheduler), "pndm", 13), reference) < 1e-9


class CorrectedThirdOrder(diffusers.DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (3M SDE) with 1/2 added where it subtracts it, in the weight of the second difference."""

    def multistep_dpm_solver_third_order_update(self, model_output_list: Any, *args: Any, **kwargs: Any) -> Any:
        sigmas = [float(sigma) for sigma in self.sigmas[self.step_index - 2 : self.step_index + 2]]
        oldest, older, now, following = (-math.log(sigma) for sigma in sigmas)
        h = following - now
        first = (model_output_list[-1] - model_output_list[-2]) * h / (now - older)
        earlier = (model_output_list[-2] - model_output_list[-3]) * h / (older - oldest)
        second = (first - earlier) * h / (now - oldest)
        theirs = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **kwargs)
        return theirs + second / math.sqrt(1 + sigmas[-1] ** 2)


def test_the_sign_in_dpmpp_3m_sde() -> None:
    with precision("DPMSolverMultistepScheduler", double=True):
        scheduler = CorrectedThirdOrder(
            algorithm_type="sde-dpmsolver++", solver_order=3, timestep_spacing="trailing", **STABLE_DIFFUSION
        )
        scheduler.set_timesteps(20)
        reference = run_diffusers(scheduler, np.random.default_rng(0).standard_normal(SHAPE))
    plans = [compile_plan(schedule_of(scheduler), "dpmpp_3m_sde", 20, diffusers_sign=sign) for sign in (False, True)]
    assert largest_difference(plans[0], reference) < 1e-9
    assert largest_difference(plans[1], reference) > 1e-3
