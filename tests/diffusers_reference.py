"""diffusers' schedulers, run whole over a fake network, with everything noted that a plan is compared in."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from runtime.plan import NoiseSchedule, Plan

Float64 = npt.NDArray[np.float64]

SHAPE = (1, 2, 3, 3)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def network(sample: Any, timestep: float) -> Any:
    """What the fake network says, in NumPy or torch: of bounded slope, and bent so that errors cannot cancel."""
    tanh = torch.tanh if isinstance(sample, torch.Tensor) else np.tanh
    return 0.7 * sample * timestep / (timestep + 1) + 0.3 * tanh(2 * sample + timestep / 1000)


@dataclass
class Trajectory:
    """One run: what the network was told and given, row by row, the last sample, and the noise drawn in each row.

    Samples are in the variance-preserving scale.
    """

    timesteps: list[float] = field(default_factory=list)
    samples: list[Float64] = field(default_factory=list)
    noises: dict[int, Float64] = field(default_factory=dict)


class Doubled:
    """A module in which single precision is double."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


def module_of(scheduler_class: type) -> ModuleType:
    """diffusers' module that a scheduler is from, or what it is derived from."""
    names = (base.__module__ for base in scheduler_class.__mro__)
    return importlib.import_module(next(name for name in names if name.startswith("diffusers.")))


@contextmanager
def precision(name: str, double: bool) -> Iterator[None]:
    """Let a scheduler compute in double precision, so that what is left of a difference is no rounding of its own."""
    module = module_of(getattr(diffusers, name))
    default = torch.get_default_dtype()
    if double:
        torch.set_default_dtype(torch.float64)
        module.np, module.torch = Doubled(np), Doubled(torch)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        module.np, module.torch = np, torch  # type: ignore[attr-defined]


def scheduler_parameters(name: str) -> set[str]:
    return set(inspect.signature(getattr(diffusers, name).__init__).parameters)


def make_scheduler(name: str, **config: Any) -> Any:
    """A scheduler by the name of its class."""
    scheduler_class = getattr(diffusers, name)
    # DPM2 finds a timestep for each of 1,000 σ when it is made, for half a second, and forgets them in set_timesteps.
    if name.startswith("KDPM2"):
        with mock.patch.object(
            scheduler_class, "_sigma_to_t", lambda self, sigma, log_sigmas: np.zeros(np.shape(sigma))
        ):
            return scheduler_class(**config)
    return scheduler_class(**config)


@contextmanager
def recorded_noise(scheduler: Any, trajectory: Trajectory) -> Iterator[None]:
    """Note what the scheduler draws. What it takes from a generator comes from NumPy's; a Brownian path is its own."""
    module = module_of(type(scheduler))
    rng = np.random.default_rng(1)
    replacements: dict[str, Any] = {}

    def randn_tensor(shape: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
        noise = rng.standard_normal(tuple(shape))
        trajectory.noises[len(trajectory.timesteps) - 1] = noise
        return torch.from_numpy(noise).to(dtype)

    if hasattr(module, "randn_tensor"):
        replacements["randn_tensor"] = randn_tensor
    if hasattr(module, "BrownianTreeNoiseSampler"):

        class BrownianTree(module.BrownianTreeNoiseSampler):  # type: ignore[misc,name-defined]
            def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
                noise: torch.Tensor = super().__call__(sigma, sigma_next)
                trajectory.noises[len(trajectory.timesteps) - 1] = noise.double().numpy()
                return noise

        replacements["BrownianTreeNoiseSampler"] = BrownianTree
    with mock.patch.multiple(module, **replacements) if replacements else mock.MagicMock():
        yield
    if "BrownianTreeNoiseSampler" in replacements:
        trajectory.noises = independent(trajectory.noises, scheduler.sigmas.double().numpy())


def independent(noises: dict[int, Float64], sigmas: Float64) -> dict[int, Float64]:
    """The draws of which DPM-Solver++ (SDE)'s are made: in every pair of rows the second noise contains the first."""
    drawn = {}
    for row in range(0, len(noises), 2):
        start, end = sigmas[row], sigmas[row + 1]  # diffusers holds each σ but the first and the last twice
        share = (start - math.sqrt(start * end)) / (start - end)
        drawn[row] = noises[row]
        drawn[row + 1] = (noises[row + 1] - math.sqrt(share) * noises[row]) / math.sqrt(1 - share)
    return drawn


def run_diffusers(scheduler: Any, start: Float64, begin: int = 0, **step_options: Any) -> Trajectory:
    """The whole loop of a scheduler whose timesteps are set.

    Args:
        scheduler: one of diffusers'. start: unit noise, or where ``begin`` is not 0 a sample of that row's level in
        the variance-preserving scale. begin: the row to begin at. step_options: go to the scheduler's ``step``.
    """
    trajectory = Trajectory()
    factor = scale_at(scheduler, begin) if begin else float(scheduler.init_noise_sigma)
    sample = torch.from_numpy(start) * factor
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    with recorded_noise(scheduler, trajectory):
        for timestep in scheduler.timesteps[begin:]:
            given = scheduler.scale_model_input(sample, timestep)
            trajectory.timesteps.append(float(timestep))
            trajectory.samples.append(given.double().numpy())
            sample = scheduler.step(
                network(given, float(timestep)), timestep, sample, return_dict=False, **step_options
            )[0]
    trajectory.samples.append(sample.double().numpy() / scale_at(scheduler, -1))
    return trajectory


def scale_at(scheduler: Any, index: int) -> float:
    """By what a sample of diffusers is larger than a variance-preserving one, at this of its σ.

    It is larger in the schedulers that step in σ, which are those that compute their initial scale from it.
    """
    steps_in_sigma = isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)
    return math.sqrt(float(scheduler.sigmas[index]) ** 2 + 1) if steps_in_sigma else 1.0


def run_plan(plan: Plan, start: Float64, noises: dict[int, Float64], timesteps: list[float]) -> list[Float64]:
    """x_0 .. x_N by the loop of docs/bundle.md in float64, with given noise and given timesteps for the network."""
    samples, outputs = [start], []
    for i in range(len(plan)):
        outputs.append(network(samples[-1], timesteps[i]))
        terms = [*padded(samples), *padded(outputs), noises.get(i)]
        samples.append(sum(weight * term for weight, term in zip(plan.weights[i], terms, strict=True) if weight != 0))
    return samples


def padded(values: list[Float64]) -> list[Any]:
    newest_first = values[::-1][:4]
    return newest_first + [None] * (4 - len(newest_first))


def largest_difference(plan: Plan, reference: Trajectory) -> float:
    """Between a plan's samples and diffusers', over all rows, in units of the largest value in the row."""
    mine = run_plan(plan, reference.samples[0], reference.noises, reference.timesteps)
    pairs = zip(mine, reference.samples, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """The noise schedule that a scheduler of diffusers was made with."""
    config = scheduler.config
    return NoiseSchedule(
        scheduler.alphas_cumprod.double().numpy(),
        config.prediction_type,
        float(getattr(scheduler, "final_alpha_cumprod", 1.0)),
        config.get("timestep_spacing", "linspace"),
        config.get("steps_offset", 0),
    )
