"""Proves the closed forms of the forward process, its posterior and the reverse mean, against chains that are really
walked, and that the forms which the paper we follow misprints would fail the same tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from training.ddpm.diffusion import (
    posterior_variance,
    predict_original,
    q_posterior,
    q_sample,
    reverse_mean,
    training_loss,
)
from training.noise_schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(12, 0.02, 0.3)
STEP = 7  # far enough from both ends that no two candidates for a formula agree
SAMPLES = 400_000
# Deviations are counted in standard errors. The draws are fixed, so a right formula passes always; a wrong one has to
# be off by so much that no luck could explain it.
CHANCE, BEYOND_CHANCE = 4.0, 20.0


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps(t: int, count: int = SAMPLES) -> Tensor:
    return torch.full((count,), t)


def walk(original: Tensor, until: int) -> tuple[Tensor, Tensor]:
    """x_{until - 1} and x_until, by single forward steps: x_t = √α_t x_{t-1} + √β_t ε (Ho et al. 2020, eq. 2)."""
    before, sample = original, original
    for t in range(until + 1):
        alpha, beta = float(SCHEDULE.alphas[t]), float(SCHEDULE.betas[t])
        before, sample = sample, alpha**0.5 * sample + beta**0.5 * normal(len(original), seed=100 + t)
    return before, sample


@dataclass
class Fit:
    """A least-squares fit: coefficients and the variance that is left, each with its standard error."""

    coefficients: Tensor
    errors: Tensor
    variance: float
    variance_error: float

    def deviations(self, coefficients: list[float]) -> list[float]:
        """How far claimed coefficients are from the fitted ones, in standard errors."""
        claimed = torch.tensor(coefficients, dtype=torch.float64)
        return ((claimed - self.coefficients) / self.errors).abs().tolist()

    def variance_deviation(self, variance: float) -> float:
        return abs(variance - self.variance) / self.variance_error


def fit(target: Tensor, *regressors: Tensor) -> Fit:
    """Regress without intercept: for Gaussian numbers this is the conditional mean, and what is left the variance."""
    design = torch.stack(regressors, dim=1)
    gram = torch.linalg.inv(design.T @ design)
    coefficients = gram @ (design.T @ target)
    variance = float((target - design @ coefficients).square().mean())
    count = len(target)
    return Fit(coefficients, (variance * gram.diagonal()).sqrt(), variance, variance * (2 / count) ** 0.5)


@pytest.fixture(scope="module")
def original() -> Tensor:
    return 0.8 * normal(SAMPLES, seed=1)


@pytest.fixture(scope="module")
def walked(original: Tensor) -> tuple[Tensor, Tensor]:
    """x_{t-1} and x_t for t = STEP."""
    return walk(original, STEP)


def weights(function: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """The two weights of a function that is linear in two numbers."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return [float(function(one, zero)), float(function(zero, one))]


def test_the_closed_form_of_q_is_the_walk(original: Tensor, walked: tuple[Tensor, Tensor]) -> None:
    """x_t regressed on x_0: the slope is √ᾱ_t, and what is left has the variance 1 - ᾱ_t."""
    signal, noise = weights(lambda x_0, epsilon: q_sample(SCHEDULE, x_0, steps(STEP, 1), epsilon))
    fitted = fit(walked[1], original)
    assert fitted.deviations([signal])[0] < CHANCE
    assert fitted.variance_deviation(noise**2) < CHANCE
    # ᾱ_t for √ᾱ_t, the index off by one, the noise's variance for its scale: each would be noticed.
    assert fitted.deviations([signal**2])[0] > BEYOND_CHANCE
    assert fitted.deviations([float(SCHEDULE.alphas_cumprod[STEP - 1].sqrt())])[0] > BEYOND_CHANCE
    assert fitted.variance_deviation(noise**4) > BEYOND_CHANCE


def test_the_closed_form_of_q_is_the_walk_exactly() -> None:
    """The same without chance: mean and variance carried through the single steps."""
    mean, variance = 1.0, 0.0
    for t in range(SCHEDULE.num_train_timesteps):
        alpha, beta = float(SCHEDULE.alphas[t]), float(SCHEDULE.betas[t])
        mean, variance = alpha**0.5 * mean, alpha * variance + beta
        signal, noise = weights(lambda x_0, epsilon, t=t: q_sample(SCHEDULE, x_0, steps(t, 1), epsilon))  # type: ignore[misc]
        assert signal == pytest.approx(mean, rel=1e-13)
        assert noise**2 == pytest.approx(variance, rel=1e-13)


def test_the_posterior_is_that_of_the_walk(original: Tensor, walked: tuple[Tensor, Tensor]) -> None:
    """x_{t-1} regressed on x_0 and x_t: the slopes are the posterior mean's weights, what is left has variance β̃_t."""
    before, sample = walked
    fitted = fit(before, original, sample)
    claimed = weights(lambda x_0, x_t: q_posterior(SCHEDULE, x_0, x_t, steps(STEP, 1))[0])
    assert max(fitted.deviations(claimed)) < CHANCE
    _, variance = q_posterior(SCHEDULE, original[:1], sample[:1], steps(STEP, 1))
    assert fitted.variance_deviation(float(variance)) < CHANCE
    assert fitted.variance_deviation(float(SCHEDULE.betas[STEP])) > BEYOND_CHANCE


def test_the_posterior_without_a_bar_is_noticed(original: Tensor, walked: tuple[Tensor, Tensor]) -> None:
    """The slip in (10): α_{t-1} where ᾱ_{t-1} belongs, in either of the places where it stands, and in the variance."""
    before, sample = walked
    fitted = fit(before, original, sample)
    alpha, beta, alpha_before = (float(table[t]) for table, t in (
        (SCHEDULE.alphas, STEP), (SCHEDULE.betas, STEP), (SCHEDULE.alphas, STEP - 1),
    ))  # fmt: skip
    left = 1 - float(SCHEDULE.alphas_cumprod[STEP])
    slipped_original, slipped_sample = alpha_before**0.5 * beta / left, alpha**0.5 * (1 - alpha_before) / left
    deviations = fitted.deviations([slipped_original, slipped_sample])
    assert min(deviations) > BEYOND_CHANCE
    assert fitted.variance_deviation((1 - alpha_before) / left * beta) > BEYOND_CHANCE


def noise_within(original: Tensor, sample: Tensor) -> Tensor:
    """The ε of the closed form that leads from x_0 to x_STEP."""
    kept = float(SCHEDULE.alphas_cumprod[STEP])
    return (sample - kept**0.5 * original) / (1 - kept) ** 0.5


def test_the_reverse_mean_is_that_of_the_walk(original: Tensor, walked: tuple[Tensor, Tensor]) -> None:
    """x_{t-1} regressed on x_t and the noise in it: the slopes are 1/√α_t and -β_t/√(1 - ᾱ_t)/√α_t."""
    before, sample = walked
    fitted = fit(before, sample, noise_within(original, sample))
    claimed = weights(lambda x_t, epsilon: reverse_mean(SCHEDULE, x_t, steps(STEP, 1), epsilon))
    assert max(fitted.deviations(claimed)) < CHANCE
    # The slip in (12), a wrong sign, and the one in (14), 1/√ᾱ_t for 1/√α_t.
    kept_more = float((SCHEDULE.alphas[STEP] / SCHEDULE.alphas_cumprod[STEP]).sqrt())
    assert fitted.deviations([claimed[0], -claimed[1]])[1] > BEYOND_CHANCE
    assert min(fitted.deviations([weight * kept_more for weight in claimed])) > BEYOND_CHANCE


def test_the_original_is_found_again_with_the_right_sign(original: Tensor, walked: tuple[Tensor, Tensor]) -> None:
    sample = walked[1]
    epsilon = noise_within(original, sample)
    found = predict_original(SCHEDULE, sample, steps(STEP), epsilon)
    torch.testing.assert_close(found, original, rtol=0, atol=1e-12)
    assert (predict_original(SCHEDULE, sample, steps(STEP), -epsilon) - original).abs().max() > 1


def test_with_the_true_noise_the_reverse_mean_is_the_posterior_mean() -> None:
    """For every timestep at once, the first included, and for images: Ho et al. 2020, eqs. 7 and 11 are one."""
    count = SCHEDULE.num_train_timesteps
    timesteps = torch.arange(count)
    original, noise = normal(count, 3, 4, 4, seed=2), normal(count, 3, 4, 4, seed=3)
    sample = q_sample(SCHEDULE, original, timesteps, noise)
    mean, variance = q_posterior(SCHEDULE, original, sample, timesteps)
    torch.testing.assert_close(reverse_mean(SCHEDULE, sample, timesteps, noise), mean, rtol=0, atol=1e-13)
    assert variance.shape == (count, 1, 1, 1)
    assert float(variance[0]) == 0
    torch.testing.assert_close(mean[0], original[0], rtol=0, atol=1e-13)


def test_the_posterior_variance_is_below_beta_and_nears_it() -> None:
    timesteps = torch.arange(SCHEDULE.num_train_timesteps)
    ratio = posterior_variance(SCHEDULE, timesteps, torch.zeros(1, dtype=torch.float64)).squeeze() / SCHEDULE.betas
    assert (ratio < 1).all()
    assert (ratio.diff() > 0).all()


class Recorder:
    """A denoiser that answers with a constant and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer

    def __call__(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        self.sample, self.timestep, self.class_labels = sample, timestep, class_labels
        return self.answer


def test_the_loss_of_denoisers_whose_answer_is_known() -> None:
    original, noise = normal(5, 1, 4, 4, seed=4).float(), normal(5, 1, 4, 4, seed=5).float()
    labels, timesteps = torch.tensor([0, 1, 2, 3, 9]), torch.tensor([0, 3, 5, 7, 11])

    def loss(answer: Tensor) -> float:
        return float(training_loss(Recorder(answer), SCHEDULE, original, labels, timesteps, noise))

    assert loss(noise) == 0
    assert loss(torch.zeros_like(noise)) == pytest.approx(float(noise.square().mean()), rel=1e-6)
    assert loss(noise + 0.5) == pytest.approx(0.25, rel=1e-6)
    # An answer in bfloat16 is compared in float32: rounding it once is all that is lost.
    rounded = noise.to(torch.bfloat16)
    assert loss(rounded) == pytest.approx(float((rounded.float() - noise).square().mean()), rel=1e-6)


def test_the_loss_asks_about_x_t_at_its_time_with_its_label() -> None:
    original, noise = normal(3, 1, 4, 4, seed=6).float(), normal(3, 1, 4, 4, seed=7).float()
    labels, timesteps = torch.tensor([2, 10, 0]), torch.tensor([11, 0, 4])
    model = Recorder(noise)
    training_loss(model, SCHEDULE, original, labels, timesteps, noise)
    torch.testing.assert_close(model.sample, q_sample(SCHEDULE, original, timesteps, noise), rtol=0, atol=0)
    assert model.timestep.dtype == torch.float32
    assert model.timestep.tolist() == [11, 0, 4]
    assert model.class_labels.tolist() == [2, 10, 0]
