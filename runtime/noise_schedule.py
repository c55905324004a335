"""What a plan has to know of the model it is made for: its noise levels, and what its network predicts.

A level is known by ᾱ (alphas_cumprod), the share of the signal's variance that is left, or by σ = √((1 - ᾱ) / ᾱ), the
ratio of noise to signal; and by the timestep that the network is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.limits import check_choice

Float64 = npt.NDArray[np.float64]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# σ is infinite where no signal is left. Samplers that work with σ take this ᾱ (σ = 4096) instead, as diffusers does.
LEAST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True)
class Level:
    """One noise level: the timestep the network is told, and ᾱ."""

    timestep: float
    alpha_cumprod: float

    @classmethod
    def from_sigma(cls, timestep: float, sigma: float) -> Level:
        return cls(timestep, 1 / (1 + sigma**2))

    @property
    def signal_scale(self) -> float:
        return math.sqrt(self.alpha_cumprod)

    @property
    def noise_scale(self) -> float:
        return math.sqrt(1 - self.alpha_cumprod)

    @property
    def sigma(self) -> float:
        """σ; infinite where no signal is left."""
        return math.sqrt((1 - self.alpha_cumprod) / self.alpha_cumprod) if self.alpha_cumprod > 0 else math.inf


@dataclass(frozen=True)
class NoiseSchedule:
    """What a plan has to know of the model it is made for.

    Attributes:
        alphas_cumprod: ᾱ by training timestep, float64 (T,), decreasing.
        prediction_type: "epsilon", "v_prediction" or "sample".
        final_alpha_cumprod: ᾱ after the last row; 1 is the clean image. Samplers that work with σ have
            ``final_sigmas_type`` instead.
        timestep_spacing: how inference picks its timesteps, unless a plan says otherwise.
        steps_offset: added to "leading" timesteps.
    """

    alphas_cumprod: Float64
    prediction_type: str = "epsilon"
    final_alpha_cumprod: float = 1.0
    timestep_spacing: str = "trailing"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        """Refuse what no model was trained with.

        Raises:
            RequestError: alphas_cumprod does not fall from below 1 to at least 0, or the prediction type is unknown.
        """
        alphas_cumprod = np.asarray(self.alphas_cumprod)
        falling = alphas_cumprod.ndim == 1 and alphas_cumprod.size > 0 and bool((np.diff(alphas_cumprod) < 0).all())
        if not falling or not 0 <= alphas_cumprod[-1] <= alphas_cumprod[0] < 1:
            raise RequestError("alphas_cumprod must be a list of numbers that fall from below 1 to no less than 0")
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Float64:
        """σ by training timestep, float64 (T,), increasing and finite."""
        alphas_cumprod = np.maximum(self.alphas_cumprod, LEAST_ALPHA_CUMPROD)
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def timesteps_at(self, sigmas: npt.ArrayLike) -> Float64:
        """The fractional timesteps of noise levels, log-linear in σ and kept within the training timesteps."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(self.num_train_timesteps))

    def level_at(self, sigma: float) -> Level:
        return Level.from_sigma(float(self.timesteps_at(sigma)), sigma)


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with no signal left at the last timestep: √ᾱ shifted and stretched (Lin et al. 2024, algorithm 1).

    It fits networks that were fine-tuned so, and needs a prediction type other than epsilon to start at the very end.
    """
    scales = np.sqrt(schedule.alphas_cumprod)
    rescaled = (scales - scales[-1]) * scales[0] / (scales[0] - scales[-1])
    return replace(schedule, alphas_cumprod=rescaled**2)
