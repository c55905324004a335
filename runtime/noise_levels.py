"""Which noise levels a sampler visits, noisiest first, and the one it ends at.

Samplers of different origin lay their levels out differently. The rules here are those of diffusers, so that the same
name with the same number of steps is the same sampler; where they are odd, a comment says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.limits import check_choice, is_finite_number
from runtime.noise_schedule import Float64, Level, NoiseSchedule
from runtime.sigma_spacings import (
    ALIGN_YOUR_STEPS,
    ALIGN_YOUR_STEPS_TIMESTEPS,
    SIGMA_SPACINGS,
    SPACED_BY_ENDS,
    align_your_steps,
)

SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS_TYPES = ("zero", "sigma_min")


def select_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: str, steps_offset: int = 0
) -> list[int]:
    """Which training timesteps inference visits, noisiest first (Lin et al. 2024, table 2).

    Args:
        num_train_timesteps: T. num_inference_steps: how many, from 1 to T. spacing: "leading" counts up from 0 in
        equal whole steps, "trailing" counts down from T - 1, "linspace" has both ends. steps_offset: added to leading
        timesteps.

    Raises:
        RequestError: the count is out of range or the spacing unknown.
    """
    total, count = num_train_timesteps, num_inference_steps
    check_count(count, total)
    check_choice("timestep_spacing", spacing, SPACINGS)
    steps: npt.NDArray[Any]
    if spacing == "leading":
        steps = np.arange(count)[::-1] * (total // count) + steps_offset
    elif spacing == "trailing":
        steps = np.round(total - np.arange(count) * (total / count)) - 1
    else:
        steps = np.round(np.linspace(0, total - 1, count))[::-1]
    if steps[0] >= total:
        raise RequestError(
            f"num_inference_steps {count} with steps_offset {steps_offset} goes beyond timestep {total - 1}"
        )
    return [int(step) for step in steps]


def check_count(count: object, total: int) -> None:
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
        raise RequestError(f"num_inference_steps is {count}; it must be a whole number from 1 to {total}")
    if count > total:
        raise RequestError(f"num_inference_steps {count} exceeds num_train_timesteps {total}")


def training_levels(schedule: NoiseSchedule, count: int, spacing: str) -> list[Level]:
    """Levels of selected training timesteps, then the schedule's final one: for DDPM, DDIM and PNDM."""
    steps = select_timesteps(schedule.num_train_timesteps, count, spacing, schedule.steps_offset)
    levels = [Level(step, float(schedule.alphas_cumprod[step])) for step in steps]
    if not levels[-1].alpha_cumprod <= schedule.final_alpha_cumprod <= 1:
        raise RequestError(
            f"final_alpha_cumprod is {schedule.final_alpha_cumprod}; it must be from "
            f"{levels[-1].alpha_cumprod:.6g}, alphas_cumprod at the last timestep {steps[-1]}, to 1"
        )
    return [*levels, Level(-1, schedule.final_alpha_cumprod)]


@dataclass(frozen=True)
class SigmaLevels:
    """Levels of samplers that work with σ: those of selected timesteps, or spaced anew by a rule for σ.

    There are two families. The samplers of k-diffusion take timesteps with both ends and may tell the network
    fractions, and a rule for σ spaces between the ends of those selected. The solvers of the diffusion equation
    (``whole``) leave out the timestep nearest to the image, tell whole numbers only, and space σ between the ends of
    the training timesteps.

    Attributes:
        whole: the second family.
        round_karras: whole timesteps under "karras", for those of the first family that do so.
        final_sigmas_type: where the last row leads unless a plan says otherwise.
    """

    whole: bool = False
    round_karras: bool = False
    final_sigmas_type: str = "zero"

    def __call__(
        self,
        schedule: NoiseSchedule,
        count: int,
        spacing: str,
        *,
        sigma_spacing: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        final_sigmas_type: str | None = None,
    ) -> list[Level]:
        """Levels of x_0 .. x_N.

        Args:
            schedule, count, spacing: the model, the number of steps, and how timesteps are selected. sigma_spacing: a
            name in ``SIGMA_SPACINGS``, or None for the levels of the timesteps. sigma_min, sigma_max: its ends instead
            of the model's. final_sigmas_type: "zero" ends at the clean image, "sigma_min" at the level of timestep 0.

        Raises:
            RequestError: an argument is unknown or out of range.
        """
        final = self.final_sigmas_type if final_sigmas_type is None else final_sigmas_type
        check_choice("final_sigmas_type", final, FINAL_SIGMAS_TYPES)
        check_sigma_spacing(sigma_spacing, sigma_min, sigma_max)
        timesteps = self.select(schedule, count, spacing)
        sigmas = np.interp(timesteps, np.arange(schedule.num_train_timesteps), schedule.sigmas)
        if sigma_spacing == "align_your_steps":
            timesteps, sigmas = self.align_your_steps(schedule, count)
        elif sigma_spacing is not None:
            most, least = (schedule.sigmas if self.whole else sigmas[::-1])[[-1, 0]]
            sigmas = SPACED_BY_ENDS[sigma_spacing](sigma_max or most, sigma_min or least, count)
            timesteps = self.told(schedule.timesteps_at(sigmas), sigma_spacing)
        check_decreasing(sigmas)
        last = 0.0 if final == "zero" else float(min(schedule.sigmas[0], sigmas[-1]))
        pairs = zip(timesteps.tolist(), sigmas.tolist(), strict=True)
        return [*(Level.from_sigma(*pair) for pair in pairs), Level.from_sigma(-1, last)]

    def select(self, schedule: NoiseSchedule, count: int, spacing: str) -> Float64:
        total = schedule.num_train_timesteps
        check_count(count, total)
        if self.whole and spacing in ("leading", "linspace"):
            if count == total:
                raise RequestError(
                    f"num_inference_steps is {count}; {spacing} has at most {total - 1} for this sampler"
                )
            steps: Sequence[float] = select_timesteps(total, count + 1, spacing, schedule.steps_offset)[:-1]
        elif spacing == "linspace":
            steps = np.linspace(0, total - 1, count)[::-1].tolist()
        else:
            steps = select_timesteps(total, count, spacing, schedule.steps_offset)
        return np.array(steps, dtype=np.float64)

    def align_your_steps(self, schedule: NoiseSchedule, count: int) -> tuple[Float64, Float64]:
        most = schedule.sigmas[-1]
        if abs(math.log(most / ALIGN_YOUR_STEPS[0])) > 0.05:
            raise RequestError(
                f"align_your_steps was found for Stable Diffusion, whose largest sigma is {ALIGN_YOUR_STEPS[0]}; "
                f"here it is {most:.6g}, so choose {', '.join(SPACED_BY_ENDS)}"
            )
        if not self.whole:
            sigmas = align_your_steps(ALIGN_YOUR_STEPS, count)
            return schedule.timesteps_at(sigmas), sigmas
        published = schedule.sigmas[list(ALIGN_YOUR_STEPS_TIMESTEPS)]
        timesteps = np.round(schedule.timesteps_at(align_your_steps(published, count)))
        return timesteps, schedule.sigmas[timesteps.astype(int)]

    def told(self, timesteps: Float64, sigma_spacing: str) -> Float64:
        """What the network is told: diffusers rounds for "karras", and cuts off the fraction for the others."""
        if sigma_spacing == "karras" and (self.whole or self.round_karras):
            return np.round(timesteps)
        # The ends are whole but for rounding, which must not decide which timestep they become.
        return np.floor(timesteps + 1e-6) if self.whole else timesteps


def check_sigma_spacing(sigma_spacing: str | None, sigma_min: float | None, sigma_max: float | None) -> None:
    if sigma_spacing is not None:
        check_choice("sigma_spacing", sigma_spacing, SIGMA_SPACINGS)
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is None:
            continue
        if sigma_spacing in (None, "align_your_steps"):
            raise RequestError(f"{name} {value} needs a sigma_spacing of karras, exponential or beta")
        if not is_finite_number(value) or not 1e-4 <= value <= 1e4:
            raise RequestError(f"{name} is {value}; it must be a number from 0.0001 to 10000")


def check_decreasing(sigmas: Float64) -> None:
    """Two equal levels would make a step of length nothing, and a rising one would add noise that nobody draws."""
    for sigma, following in itertools.pairwise(sigmas):
        if following >= sigma:
            raise RequestError(
                f"noise levels must fall, but sigma {following:.6g} follows {sigma:.6g}; "
                "take fewer steps, or a sigma_min below sigma_max"
            )


def distilled_levels(schedule: NoiseSchedule, count: int, original_inference_steps: int) -> list[Level]:
    """Levels of distilled networks: every so many of the timesteps of the teacher's sampler, without a final one."""
    total, original = schedule.num_train_timesteps, original_inference_steps
    check_count(count, total)
    if not isinstance(original, int) or not count <= original <= total:
        raise RequestError(
            f"original_inference_steps is {original}; it must be a whole number from {count} (num_inference_steps) "
            f"to {total} (num_train_timesteps)"
        )
    teacher = np.arange(original, 0, -1) * (total // original) - 1
    steps = teacher[np.floor(np.linspace(0, original, count, endpoint=False)).astype(int)]
    return [Level(int(step), float(schedule.alphas_cumprod[step])) for step in steps]


def consistency_levels(
    schedule: NoiseSchedule, count: int, spacing: None, *, original_inference_steps: int = 50
) -> list[Level]:
    """Levels of LCM, which ends at the clean image."""
    return [*distilled_levels(schedule, count, original_inference_steps), Level(-1, 1.0)]


def trajectory_levels(
    schedule: NoiseSchedule, count: int, spacing: None, *, original_inference_steps: int = 50
) -> list[Level]:
    """Levels of TCD, which ends at the level of timestep 0 and not at the clean image."""
    return [
        *distilled_levels(schedule, count, original_inference_steps),
        Level(-1, float(schedule.alphas_cumprod[0])),
    ]
