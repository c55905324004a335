"""Proves the noise levels: the rules that space them, against their formulas and SciPy, the way from σ to timesteps and
back, schedules without signal at the end, and that a schedule nobody trained with is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from runtime.errors import RequestError
from runtime.noise_schedule import Level, NoiseSchedule, rescale_zero_terminal_snr
from runtime.plan import compile_plan
from runtime.sigma_spacings import ALIGN_YOUR_STEPS, SPACED_BY_ENDS, beta_quantile

SCHEDULE = NoiseSchedule(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


def sigmas_of(**options: Any) -> np.ndarray:
    plan = compile_plan(SCHEDULE, "euler", 10, **options)
    return plan.noise_scales / plan.signal_scales


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.5])
def test_beta_quantiles_are_those_of_scipy(shape: float) -> None:
    probabilities = [0.0, 1e-9, 1e-4, 0.1, 0.49999, 0.5, 0.50001, 0.9, 1 - 1e-6, 1.0]
    mine = [beta_quantile(probability, shape) for probability in probabilities]
    np.testing.assert_allclose(mine, stats.beta.ppf(probabilities, shape, shape), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SPACED_BY_ENDS)
@pytest.mark.parametrize("count", [2, 3, 50])
def test_spacings_have_their_ends_and_fall(name: str, count: int) -> None:
    sigmas = SPACED_BY_ENDS[name](14.6, 0.03, count)
    np.testing.assert_allclose(sigmas[[0, -1]], [14.6, 0.03], rtol=1e-12)
    assert len(sigmas) == count
    assert (np.diff(sigmas) < 0).all()


def test_karras_and_exponential_are_their_formulas() -> None:
    sigmas = sigmas_of(sigma_spacing="karras", sigma_min=0.1, sigma_max=10.0)
    steps = np.arange(10) / 9
    np.testing.assert_allclose(sigmas[:-1], (10 ** (1 / 7) + steps * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7)
    sigmas = sigmas_of(sigma_spacing="exponential", sigma_min=0.1, sigma_max=10.0)
    np.testing.assert_allclose(sigmas[:-1], 10 ** (1 - 2 * steps))
    assert sigmas[-1] == 0


def test_align_your_steps_has_the_published_levels() -> None:
    np.testing.assert_allclose(sigmas_of(sigma_spacing="align_your_steps")[:-1], ALIGN_YOUR_STEPS[:-1], rtol=1e-12)
    twenty = compile_plan(SCHEDULE, "euler", 20, sigma_spacing="align_your_steps")
    np.testing.assert_allclose((twenty.noise_scales / twenty.signal_scales)[:-1:2], ALIGN_YOUR_STEPS[:-1], rtol=1e-12)


def test_timesteps_and_sigmas_lead_to_each_other() -> None:
    np.testing.assert_allclose(SCHEDULE.timesteps_at(SCHEDULE.sigmas), np.arange(1000), atol=1e-9)
    between = SCHEDULE.level_at(np.sqrt(SCHEDULE.sigmas[400] * SCHEDULE.sigmas[401]))
    assert abs(between.timestep - 400.5) < 1e-9
    assert [SCHEDULE.level_at(sigma).timestep for sigma in (1e-3, 1e3)] == [0, 999]


@pytest.mark.parametrize("sigma", [0.0, 0.002, 1.0, 80.0])
def test_a_level_keeps_its_sigma(sigma: float) -> None:
    level = Level.from_sigma(3, sigma)
    np.testing.assert_allclose([level.sigma, level.noise_scale / level.signal_scale], sigma, rtol=1e-9)


def test_zero_terminal_snr_keeps_the_first_level_and_loses_the_last() -> None:
    rescaled = rescale_zero_terminal_snr(SCHEDULE)
    assert rescaled.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(rescaled.alphas_cumprod[0], SCHEDULE.alphas_cumprod[0], rtol=1e-12)
    scales, before = np.sqrt(rescaled.alphas_cumprod), np.sqrt(SCHEDULE.alphas_cumprod)
    np.testing.assert_allclose(np.diff(scales) / np.diff(before), scales[0] / (before[0] - before[-1]), rtol=1e-9)
    assert np.isfinite(rescaled.sigmas).all()


@pytest.mark.parametrize(
    "alphas_cumprod",
    [[], [0.9, 0.9, 0.5], [0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [0.9, float("nan"), 0.1], [[0.9, 0.5]]],
)
def test_a_schedule_that_does_not_fall_is_refused(alphas_cumprod: list[Any]) -> None:
    with pytest.raises(RequestError, match="alphas_cumprod must be a list of numbers that fall"):
        NoiseSchedule(np.array(alphas_cumprod))


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(RequestError, match="prediction_type 'score' is unknown; choose epsilon, v_prediction, sample"):
        NoiseSchedule(SCHEDULE.alphas_cumprod, "score")


def test_a_final_level_noisier_than_the_last_timestep_is_refused() -> None:
    with pytest.raises(RequestError, match=r"final_alpha_cumprod is 0\.5; it must be from"):
        compile_plan(NoiseSchedule(SCHEDULE.alphas_cumprod, final_alpha_cumprod=0.5), "ddpm", 10)
