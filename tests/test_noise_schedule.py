"""Proves that the noise schedule is the published one: against the formula in plain floats, and known numbers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as rescaled_by_diffusers

from training.noise_schedule import NoiseSchedule, rescale_zero_terminal_snr
from training.stable_diffusion.config import SchedulerConfig

PAPER = NoiseSchedule(400, 1e-4, 0.02)
DDPM = NoiseSchedule(1000, 1e-4, 0.02)
STABLE_DIFFUSION = NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear")


def betas_in_plain_floats(schedule: NoiseSchedule) -> list[float]:
    """The definition, without torch: even steps of β, or of √β."""
    last = schedule.num_train_timesteps - 1
    if schedule.beta_schedule == "linear":
        return [schedule.beta_start + (schedule.beta_end - schedule.beta_start) * t / last for t in range(last + 1)]
    start, end = math.sqrt(schedule.beta_start), math.sqrt(schedule.beta_end)
    return [(start + (end - start) * t / last) ** 2 for t in range(last + 1)]


@pytest.mark.parametrize("schedule", [PAPER, DDPM, STABLE_DIFFUSION], ids=["paper", "ddpm", "stable-diffusion"])
def test_tables_follow_the_definition(schedule: NoiseSchedule) -> None:
    betas = betas_in_plain_floats(schedule)
    products = [math.exp(math.fsum(math.log1p(-beta) for beta in betas[: t + 1])) for t in range(len(betas))]
    for mine, expected in (
        (schedule.betas, betas),
        (schedule.alphas, [1 - beta for beta in betas]),
        (schedule.alphas_cumprod, products),
        (schedule.alphas_cumprod_prev, [1.0, *products[:-1]]),
    ):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_papers_schedule_is_cut_short() -> None:
    assert PAPER.alphas_cumprod[-1] == pytest.approx(0.01747, abs=5e-6)
    assert PAPER.alphas_cumprod[-1].sqrt() == pytest.approx(0.13, abs=5e-3)  # of the signal's amplitude


def test_the_ancestors_count_of_betas_gives_its_number() -> None:
    """It makes T + 1 betas and multiplies them all, which is where the 0.0173 that one reads elsewhere comes from."""
    assert NoiseSchedule(401, 1e-4, 0.02).alphas_cumprod[-1] == pytest.approx(0.0173, abs=5e-6)


def test_a_thousand_steps_leave_almost_nothing_of_the_signal() -> None:
    assert DDPM.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_stable_diffusions_noise_levels() -> None:
    """The ends of σ = sqrt((1 - ᾱ) / ᾱ) that samplers in sigma space are known to use for SD 1.x."""
    sigmas = ((1 - STABLE_DIFFUSION.alphas_cumprod) / STABLE_DIFFUSION.alphas_cumprod).sqrt()
    assert sigmas[0] == pytest.approx(0.0292, abs=5e-5)
    assert sigmas[-1] == pytest.approx(14.6146, abs=5e-5)


def test_the_ends_are_the_betas_asked_for() -> None:
    assert PAPER.betas[0] == 1e-4
    assert PAPER.betas[-1] == 0.02
    single = NoiseSchedule(1, 0.3, 0.3)
    assert single.alphas_cumprod.tolist() == [0.7]
    assert single.alphas_cumprod_prev.tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1e-4, 0.02), "num_train_timesteps is 0; it must be 1 to 1000000"),
        ((-3, 1e-4, 0.02), "num_train_timesteps is -3"),
        ((10**12, 1e-4, 0.02), "num_train_timesteps is 1000000000000"),
        ((10, 0.0, 0.02), "betas from 0.0 to 0.02"),
        ((10, -0.1, 0.02), "betas from -0.1"),
        ((10, 0.02, 1e-4), "not decrease"),
        ((10, 1e-4, 1.0), "betas from 0.0001 to 1.0"),
        ((10, math.nan, 0.02), "betas from nan"),
        ((10, 1e-4, math.inf), "to inf"),
        ((10, 1e-4, 0.02, "cosine"), "beta_schedule 'cosine' is unknown; choose linear or scaled_linear"),
    ],
)
def test_bad_values_are_refused_by_name(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(*arguments)


@pytest.mark.parametrize("schedule", [PAPER, STABLE_DIFFUSION], ids=["paper", "stable-diffusion"])
def test_zero_terminal_snr_is_that_of_diffusers(schedule: NoiseSchedule) -> None:
    mine = rescale_zero_terminal_snr(schedule.alphas_cumprod)
    theirs = torch.cumprod(1 - rescaled_by_diffusers(schedule.betas), dim=0)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-15)
    assert mine[-1] == 0
    torch.testing.assert_close(mine[0], schedule.alphas_cumprod[0], rtol=1e-14, atol=0)
    assert (mine.diff() < 0).all()


def test_a_scheduler_applies_it_and_knows_the_last_level() -> None:
    plain, rescaled = SchedulerConfig(), SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True)
    assert torch.equal(plain.alphas_cumprod, STABLE_DIFFUSION.alphas_cumprod)
    assert torch.equal(rescaled.alphas_cumprod, rescale_zero_terminal_snr(STABLE_DIFFUSION.alphas_cumprod))
    assert plain.final_alpha_cumprod == pytest.approx(1 - 0.00085)
    assert SchedulerConfig(set_alpha_to_one=True).final_alpha_cumprod == 1
