"""Reference samplers in PyTorch: what the torch-free runtime is proven against, and what training previews with.

They are written from the papers' formulas, step by step, and share no code with the runtime's plan tables: agreement
between the two is evidence. Noise is an argument, and each sampler is a generator that yields the sample after every
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from training.ddpm.diffusion import Denoiser, Variance, gather, posterior_variance, reverse_mean
from training.noise_schedule import NoiseSchedule, PredictionType

Noise = Callable[[], Tensor]


class SignalLevels(Protocol):
    """ᾱ by timestep, float64 (T,)."""

    @property
    def alphas_cumprod(self) -> Tensor: ...


def guided(
    model: Denoiser, class_labels: Tensor, null_class: int, guidance_scale: float
) -> Callable[[Tensor, int], Tensor]:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): uncond + s (cond - uncond), in one batch [uncond, cond].

    ``guidance_scale`` is s; the papers' w is s - 1. At s = 1 the unconditional half is not evaluated.
    """

    def predict(sample: Tensor, timestep: int) -> Tensor:
        if guidance_scale == 1:
            return model(sample, sample.new_full((len(sample),), timestep), class_labels)
        labels = torch.cat([torch.full_like(class_labels, null_class), class_labels])
        both = model(torch.cat([sample, sample]), sample.new_full((2 * len(sample),), timestep), labels)
        uncond, cond = both.chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    return predict


@torch.no_grad()
def sample_ddpm(
    predict: Callable[[Tensor, int], Tensor],
    schedule: NoiseSchedule,
    start: Tensor,
    noise: Noise,
    variance: Variance = "posterior",
) -> Iterator[Tensor]:
    """Ancestral sampling through all T steps (Ho et al. 2020, algorithm 2).

    Args:
        predict: the guided noise prediction, from (x_t, t).
        schedule: the variance schedule.
        start: x_T, standard normal, (B, C, H, W).
        noise: called once for each step but the last, in order; returns standard normal noise shaped like ``start``.
        variance: "posterior" is β̃_t, "beta" is β_t.

    Yields:
        x_{t-1} for t = T - 1 .. 0.
    """
    sample = start
    for t in reversed(range(schedule.num_train_timesteps)):
        timesteps = torch.full((len(sample),), t, device=sample.device)
        mean = reverse_mean(schedule, sample, timesteps, predict(sample, t))
        if t > 0:
            sigma = (
                posterior_variance(schedule, timesteps, sample)
                if variance == "posterior"
                else gather(schedule.betas, timesteps, sample)
            )
            sample = mean + sigma.sqrt() * noise()
        else:
            sample = mean
        yield sample


@torch.no_grad()
def sample_ddim(
    predict: Callable[[Tensor, int], Tensor],
    schedule: SignalLevels,
    start: Tensor,
    timesteps: Sequence[int],
    noise: Noise | None = None,
    eta: float = 0.0,
    prediction_type: PredictionType = "epsilon",
    final_alpha_cumprod: float = 1.0,
) -> Iterator[Tensor]:
    """DDIM along a decreasing sequence of timesteps (Song et al. 2021, eqs. 12 and 16).

    Args:
        predict: the guided prediction, from (x_t, t).
        schedule: the variance schedule, or what else knows the signal at each timestep.
        start: x at ``timesteps[0]``, (B, C, H, W).
        timesteps: strictly decreasing indices.
        noise: called once for each step but the last when ``eta`` is above 0.
        eta: 0 is deterministic, 1 has the variance of DDPM.
        prediction_type: what ``predict`` returns.
        final_alpha_cumprod: ᾱ after the last timestep; 1 is the clean image.

    Yields:
        The sample after each step.
    """
    sample = start
    levels = [*schedule.alphas_cumprod[list(timesteps)].tolist(), final_alpha_cumprod]
    for t, after, before in zip(timesteps, levels, levels[1:], strict=False):
        original, noise_pred = original_and_noise(prediction_type, after, sample, predict(sample, t))
        sigma = eta * math.sqrt((1 - before) / (1 - after)) * math.sqrt(1 - after / before)
        direction = math.sqrt(max(0.0, 1 - before - sigma**2))
        sample = math.sqrt(before) * original + direction * noise_pred
        if sigma > 0:
            if noise is None:
                raise ValueError(f"eta {eta} draws fresh noise; pass noise=")
            sample = sample + sigma * noise()
        yield sample


def original_and_noise(
    prediction_type: PredictionType, alpha_cumprod: float, sample: Tensor, output: Tensor
) -> tuple[Tensor, Tensor]:
    """x_0 and ε, of which x_t is made, from x_t and what the network says of it.

    Ho et al. 2020, eq. 4, solved for either; for v it is the rotation of Salimans & Ho 2022, appendix D.
    """
    signal_scale, noise_scale = math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)
    if prediction_type == "epsilon":
        return (sample - noise_scale * output) / signal_scale, output
    if prediction_type == "v_prediction":
        return signal_scale * sample - noise_scale * output, signal_scale * output + noise_scale * sample
    return output, (sample - signal_scale * output) / noise_scale
