"""The forward process of DDPM, its posterior and the training loss (Ho et al. 2020).

Shapes: B batch, ``...`` the image's own. ``timesteps`` are int64 (B,) indices into the schedule. No function here draws
its own randomness: noise is an argument, so that a caller decides what repeats.

The paper this project follows prints three of the formulas with slips; what stands here is the corrected form, tested
against Monte Carlo in ``tests/test_diffusion.py``: its (10) drops the bar of ᾱ_{t-1}, its (12) has a wrong sign, and
its (14) has 1/√ᾱ_t where 1/√α_t belongs.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from training.noise_schedule import NoiseSchedule

Variance = Literal["posterior", "beta"]


class Denoiser(Protocol):
    """Anything that predicts the noise in ``sample``: a network, or a stand-in with a known answer."""

    def __call__(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor: ...


def gather(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """``values[timesteps]`` in the dtype of ``like``, shaped (B, 1, ..., 1) so that it multiplies a batch of images."""
    picked = values.to(timesteps.device)[timesteps].to(like.dtype)
    return picked.reshape(-1, *[1] * (like.ndim - 1))


def q_sample(schedule: NoiseSchedule, original: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t given x_0, in closed form: x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4).

    Args:
        schedule: the variance schedule.
        original: x_0, (B, ...).
        timesteps: int64 (B,).
        noise: ε, standard normal, shaped like ``original``.
    """
    alphas_cumprod = schedule.alphas_cumprod
    signal_scale = gather(alphas_cumprod.sqrt(), timesteps, original)
    noise_scale = gather((1 - alphas_cumprod).sqrt(), timesteps, original)
    return signal_scale * original + noise_scale * noise


def predict_original(schedule: NoiseSchedule, sample: Tensor, timesteps: Tensor, noise_pred: Tensor) -> Tensor:
    """Solve eq. 4 for x_0, given x_t and the noise in it."""
    alphas_cumprod = schedule.alphas_cumprod
    signal_scale = gather(alphas_cumprod.sqrt(), timesteps, sample)
    noise_scale = gather((1 - alphas_cumprod).sqrt(), timesteps, sample)
    return (sample - noise_scale * noise_pred) / signal_scale


def q_posterior(schedule: NoiseSchedule, original: Tensor, sample: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7).

    Args:
        schedule: the variance schedule.
        original: x_0, (B, ...).
        sample: x_t, (B, ...).
        timesteps: int64 (B,).

    Returns:
        The mean, (B, ...), and the variance β̃_t, (B, 1, ..., 1); at t = 0 the mean is x_0 and the variance 0.
    """
    before, after = schedule.alphas_cumprod_prev, schedule.alphas_cumprod
    weight_original = gather(before.sqrt() * schedule.betas / (1 - after), timesteps, sample)
    weight_sample = gather(schedule.alphas.sqrt() * (1 - before) / (1 - after), timesteps, sample)
    return weight_original * original + weight_sample * sample, posterior_variance(schedule, timesteps, sample)


def posterior_variance(schedule: NoiseSchedule, timesteps: Tensor, like: Tensor) -> Tensor:
    """β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t, shaped (B, 1, ..., 1) (Ho et al. 2020, eq. 7; our paper's eq. 13)."""
    variance = (1 - schedule.alphas_cumprod_prev) / (1 - schedule.alphas_cumprod) * schedule.betas
    return gather(variance, timesteps, like)


def reverse_mean(schedule: NoiseSchedule, sample: Tensor, timesteps: Tensor, noise_pred: Tensor) -> Tensor:
    """Mean of p(x_{t-1} | x_t): (x_t - β_t / √(1 - ᾱ_t) ε_θ) / √α_t (Ho et al. 2020, eq. 11)."""
    betas, alphas, alphas_cumprod = schedule.betas, schedule.alphas, schedule.alphas_cumprod
    noise_weight = gather(betas / (1 - alphas_cumprod).sqrt(), timesteps, sample)
    return (sample - noise_weight * noise_pred) / gather(alphas.sqrt(), timesteps, sample)


def training_loss(
    model: Denoiser,
    schedule: NoiseSchedule,
    original: Tensor,
    class_labels: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean squared error between the noise that was added and the noise predicted (Ho et al. 2020, eq. 14).

    Args:
        model: predicts noise from (x_t, t, label).
        schedule: the variance schedule.
        original: x_0 in [-1, 1], (B, C, H, W).
        class_labels: int64 (B,), already dropped to the null class where guidance wants it (Ho & Salimans 2022,
            algorithm 1).
        timesteps: int64 (B,).
        noise: ε, standard normal, shaped like ``original``.

    Returns:
        A scalar.
    """
    sample = q_sample(schedule, original, timesteps, noise)
    noise_pred = model(sample, timesteps.to(torch.float32), class_labels)
    return torch.nn.functional.mse_loss(noise_pred.float(), noise)
