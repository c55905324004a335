"""Noise schedules: the only place in the repository where a beta is turned into anything else.

Terms (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", sections 2 and 3)::

    betas            variances of the forward steps              β_t
    alphas           1 - betas                                   α_t
    alphas_cumprod   product of alphas up to and including t     ᾱ_t

``timesteps`` are indices 0 .. num_train_timesteps - 1, as in diffusers: index 0 is the first, least noisy step
(the t = 1 of the paper). Everything is float64, because products of a thousand factors are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""What a network says of x_t = √ᾱ x_0 + √(1 - ᾱ) ε: ε, v = √ᾱ ε - √(1 - ᾱ) x_0 (Salimans & Ho 2022), or x_0."""

MOST_TIMESTEPS = 1_000_000  # a schedule may be a stranger's, and its tables are as long as it says


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance schedule, named by the numbers it is made from.

    Attributes:
        num_train_timesteps: T, the number of forward steps.
        beta_start: β of the first step.
        beta_end: β of the last step.
        beta_schedule: "linear" spaces β evenly (Ho et al. 2020, section 4); "scaled_linear" spaces √β evenly
            (latent diffusion, Rombach et al. 2022).

    Raises:
        ValueError: T is below 1 or above a million, a β is outside (0, 1), they decrease, or the name is unknown.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"

    def __post_init__(self) -> None:
        if not 1 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}; it must be 1 to {MOST_TIMESTEPS}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas from {self.beta_start} to {self.beta_end}: they must lie between 0 and 1 and not decrease"
            )
        if self.beta_schedule not in ("linear", "scaled_linear"):
            raise ValueError(f"beta_schedule {self.beta_schedule!r} is unknown; choose linear or scaled_linear")

    @cached_property
    def betas(self) -> Tensor:
        """β_t, float64 of shape (T,)."""
        power = 1.0 if self.beta_schedule == "linear" else 0.5
        start, end = self.beta_start**power, self.beta_end**power
        return torch.linspace(start, end, self.num_train_timesteps, dtype=torch.float64) ** (1 / power)

    @cached_property
    def alphas(self) -> Tensor:
        """α_t = 1 - β_t, float64 of shape (T,)."""
        return 1 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t, float64 of shape (T,)."""
        return torch.cumprod(self.alphas, dim=0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """ᾱ_{t-1}, float64 of shape (T,); 1 before the first step, where nothing has been added yet."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ of a schedule at whose last step nothing of the signal is left.

    √ᾱ is shifted so that it ends at 0, and stretched so that it begins where it began (Lin et al. 2024, "Common
    Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).

    Args:
        alphas_cumprod: float64 (T,), decreasing, T at least 2.
    """
    scales = alphas_cumprod.sqrt()
    first, last = scales[0], scales[-1]
    return ((scales - last) * first / (first - last)) ** 2
