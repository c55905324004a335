"""Reference samplers in PyTorch: what the torch-free runtime is proven against, and what training previews with.

They are written from the papers' formulas, step by step, and share no code with the runtime's plan tables: agreement
between the two is evidence. Noise is an argument, and each sampler is a generator that yields the sample after every
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from training.ddpm.diffusion import Denoiser, Variance, gather, posterior_variance, predict_original, reverse_mean
from training.noise_schedule import NoiseSchedule

Noise = Callable[[], Tensor]


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
    schedule: NoiseSchedule,
    start: Tensor,
    timesteps: Sequence[int],
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """DDIM along a decreasing sequence of timesteps (Song et al. 2021, eqs. 12 and 16).

    Args:
        predict: the guided noise prediction, from (x_t, t).
        schedule: the variance schedule.
        start: x at ``timesteps[0]``, (B, C, H, W).
        timesteps: strictly decreasing indices; after the last comes the clean image.
        noise: called once for each step but the last when ``eta`` is above 0.
        eta: 0 is deterministic, 1 has the variance of DDPM.

    Yields:
        The sample after each step.
    """
    sample = start
    for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        index = torch.full((len(sample),), t, device=sample.device)
        noise_pred = predict(sample, t)
        original = predict_original(schedule, sample, index, noise_pred)
        after = schedule.alphas_cumprod[t]
        before = schedule.alphas_cumprod[following] if following >= 0 else torch.ones((), dtype=torch.float64)
        sigma = float(eta * ((1 - before) / (1 - after)).sqrt() * (1 - after / before).sqrt())
        direction = float((1 - before - sigma**2).clamp(min=0).sqrt())
        sample = float(before.sqrt()) * original + direction * noise_pred
        if sigma > 0:
            if noise is None:
                raise ValueError(f"eta {eta} draws fresh noise; pass noise=")
            sample = sample + sigma * noise()
        yield sample
