"""Samplers as tables: one row for each evaluation of the network, compiled in float64.

Terms, as in the papers:

    ᾱ (alphas_cumprod)   share of the signal's variance that is left
    signal_scale s       √ᾱ         noise_scale n   √(1 - ᾱ)
    x                    the sample, in the variance-preserving scale: x = s·x_0 + n·ε
    o                    what the network says of x (guided): ε, v = s·ε - n·x_0, or x_0, by its prediction type
    z                    fresh standard normal noise

Nearly every sampler computes the next x as a *linear* combination of the last samples, the last outputs and fresh
noise. So a sampler here is a small function that walks the noise levels and writes each row as a combination of nine
unit vectors: four samples (newest first), four outputs, one noise. What a host needs of it are the numbers.

This module needs NumPy alone and holds no state; it serves as schedulers for anyone's model.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError

Float64 = npt.NDArray[np.float64]

COLUMNS = 9
SAMPLE, OUTPUT, NOISE = 0, 4, 8  # first column of each kind: x_i ..., o_i ..., z_i
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


def unit(column: int) -> Float64:
    """The combination that is one column alone."""
    vector = np.zeros(COLUMNS)
    vector[column] = 1
    return vector


@dataclass(frozen=True)
class NoiseSchedule:
    """What a plan has to know of the model it is made for.

    Attributes:
        alphas_cumprod: ᾱ by training timestep, float64 (T,), decreasing.
        prediction_type: "epsilon", "v_prediction" or "sample".
        final_alpha_cumprod: ᾱ after the last row; 1 is the clean image.
        timestep_spacing: how inference picks its timesteps, unless a plan says otherwise.
        steps_offset: added to "leading" timesteps.
    """

    alphas_cumprod: Float64
    prediction_type: str = "epsilon"
    final_alpha_cumprod: float = 1.0
    timestep_spacing: str = "trailing"
    steps_offset: int = 0

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)


@dataclass(frozen=True)
class Level:
    """One noise level: the timestep the network is told, and ᾱ."""

    timestep: float
    alpha_cumprod: float

    @property
    def signal_scale(self) -> float:
        return math.sqrt(self.alpha_cumprod)

    @property
    def noise_scale(self) -> float:
        return math.sqrt(1 - self.alpha_cumprod)


@dataclass(frozen=True)
class Plan:
    """A compiled sampler; the fields are those of ``docs/bundle.md``, section "A plan".

    Attributes:
        sampler, num_inference_steps, options: where the plan came from; nothing is computed with them.
        prediction_type: that of the network the weights were made for.
        initial_scale: x_0 = initial_scale · noise.
        signal_scales, noise_scales: scales of x_0 .. x_N, float64 (N + 1,).
        timesteps: what the network is told, float64 (N,).
        guidance: share of the guidance in each row, float64 (N,), in [0, 1].
        weights: float64 (N, 9).
        x0_weights: the predicted original sample from (x_i, o_i), float64 (N, 2).
        clip_sample: bound of the predicted original, or None.
        guidance_rescale: factor of rescaled guidance, or 0.
    """

    sampler: str
    num_inference_steps: int
    options: Mapping[str, Any]
    prediction_type: str
    initial_scale: float
    signal_scales: Float64
    noise_scales: Float64
    timesteps: Float64
    guidance: Float64
    weights: Float64
    x0_weights: Float64
    clip_sample: float | None = None
    guidance_rescale: float = 0.0

    def __len__(self) -> int:
        """N, the number of rows; that is, of guided evaluations of the network."""
        return len(self.timesteps)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; numbers keep all their digits."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """Read what ``to_json`` wrote, here or elsewhere.

        Raises:
            RequestError: a key is missing or unknown, an array has another shape, or a number is not finite.
        """
        if not isinstance(value, dict):
            raise RequestError(f"a plan is a JSON object, not {type(value).__name__}")
        missing, unknown = (
            cls.__dataclass_fields__.keys() - value.keys(),
            value.keys() - cls.__dataclass_fields__.keys(),
        )
        if missing or unknown:
            raise RequestError(f"the plan lacks {sorted(missing)} and has unknown keys {sorted(unknown)}")
        rows = len(value["timesteps"]) if isinstance(value["timesteps"], list) else 0
        if not rows:
            raise RequestError("the plan has no rows; timesteps must be a list of at least one number")
        shapes: dict[str, tuple[int, ...]] = {
            "signal_scales": (rows + 1,),
            "noise_scales": (rows + 1,),
            "timesteps": (rows,),
            "guidance": (rows,),
            "weights": (rows, COLUMNS),
            "x0_weights": (rows, 2),
        }
        arrays = {name: finite_array(name, value[name], shape) for name, shape in shapes.items()}
        if arrays["guidance"].min() < 0 or arrays["guidance"].max() > 1:
            raise RequestError("the plan's guidance must lie in [0, 1]")
        if value["prediction_type"] not in PREDICTION_TYPES:
            raise RequestError(
                f"prediction_type {value['prediction_type']!r} is unknown; it is one of {PREDICTION_TYPES}"
            )
        for name in ("initial_scale", "guidance_rescale", "clip_sample"):
            if not is_finite_number(value[name]) and not (name == "clip_sample" and value[name] is None):
                raise RequestError(f"the plan's {name} is {value[name]!r}; it must be a finite number")
        return cls(**(value | arrays))


def is_finite_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def finite_array(name: str, value: object, shape: tuple[int, ...]) -> Float64:
    """A JSON list of numbers as an array of a known shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise RequestError(f"the plan's {name} must be finite numbers of shape {shape}")
    return array


# --- noise levels -----------------------------------------------------------------------------------------------------


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
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
        raise RequestError(f"num_inference_steps is {count}; it must be a whole number from 1 to {total}")
    if count > total:
        raise RequestError(f"num_inference_steps {count} exceeds num_train_timesteps {total}")
    steps: npt.NDArray[Any]
    if spacing == "leading":
        steps = np.arange(count)[::-1] * (total // count) + steps_offset
    elif spacing == "trailing":
        steps = np.round(total - np.arange(count) * (total / count)) - 1
    elif spacing == "linspace":
        steps = np.round(np.linspace(0, total - 1, count))[::-1]
    else:
        raise RequestError(f"timestep_spacing {spacing!r} is unknown; choose {', '.join(SPACINGS)}")
    if steps[0] >= total:
        raise RequestError(
            f"num_inference_steps {count} with steps_offset {steps_offset} goes beyond timestep {total - 1}"
        )
    return [int(step) for step in steps]


def select_levels(schedule: NoiseSchedule, num_inference_steps: int, spacing: str) -> list[Level]:
    """The noise levels of x_0 .. x_N: those of the selected timesteps, then the final one."""
    steps = select_timesteps(schedule.num_train_timesteps, num_inference_steps, spacing, schedule.steps_offset)
    levels = [Level(step, float(schedule.alphas_cumprod[step])) for step in steps]
    return [*levels, Level(-1, schedule.final_alpha_cumprod)]


def predictions(level: Level, prediction_type: str) -> tuple[Float64, Float64]:
    """Predicted original sample x_0 and noise ε as combinations of x_i and o_i (Salimans & Ho 2022, appendix D)."""
    x, o, s, n = unit(SAMPLE), unit(OUTPUT), level.signal_scale, level.noise_scale
    if prediction_type == "epsilon":
        return (x - n * o) / s, o
    if prediction_type == "v_prediction":
        return s * x - n * o, n * x + s * o
    return o, (x - s * o) / n


# --- samplers: from noise levels to the rows of the table
# ---------------------------------------------------------------


def ddim(levels: list[Level], prediction_type: str, eta: float = 0.0) -> Iterator[Float64]:
    """DDIM (Song et al. 2021, eqs. 12 and 16): eta 0 is deterministic, eta 1 has the variance of DDPM."""
    if not is_finite_number(eta) or eta < 0:
        raise RequestError(
            f"eta is {eta}; it must be a number of at least 0 (0 is deterministic, 1 is DDPM's variance)"
        )
    for now, following in itertools.pairwise(levels):
        x0, eps = predictions(now, prediction_type)
        after, before = now.alpha_cumprod, following.alpha_cumprod
        variance = eta**2 * (1 - before) / (1 - after) * (1 - after / before)
        if variance > 1 - before:
            raise RequestError(
                f"eta {eta} asks for more noise than there is at timestep {now.timestep:g}; 1 is always possible"
            )
        yield following.signal_scale * x0 + math.sqrt(1 - before - variance) * eps + math.sqrt(variance) * unit(NOISE)


def ddpm(levels: list[Level], prediction_type: str, variance: str = "posterior") -> Iterator[Float64]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2 with eq. 7), over all levels or a subsequence of them.

    ``variance`` is "posterior" (β̃) or "beta" (β), the two choices of their section 3.2. The last row draws nothing.
    """
    if variance not in ("posterior", "beta"):
        raise RequestError(f"variance {variance!r} is unknown; choose posterior or beta")
    for now, following in itertools.pairwise(levels):
        x0, _ = predictions(now, prediction_type)
        after, before = now.alpha_cumprod, following.alpha_cumprod
        alpha = after / before
        beta = 1 - alpha
        mean = math.sqrt(before) * beta / (1 - after) * x0 + math.sqrt(alpha) * (1 - before) / (1 - after) * unit(
            SAMPLE
        )
        sigma_squared = beta if variance == "beta" else (1 - before) / (1 - after) * beta
        is_last = following is levels[-1]
        yield mean + (0 if is_last else math.sqrt(sigma_squared)) * unit(NOISE)


Sampler = Callable[..., Iterator[Float64]]
SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ddpm": ddpm}


def sampler_options(sampler: str) -> dict[str, Any]:
    """The options of a sampler and their defaults.

    Raises:
        RequestError: the sampler is unknown.
    """
    if sampler not in SAMPLERS:
        raise RequestError(f"sampler {sampler!r} is unknown; choose {', '.join(sorted(SAMPLERS))}")
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def compile_plan(
    schedule: NoiseSchedule,
    sampler: str = "ddim",
    num_inference_steps: int | None = None,
    timestep_spacing: str | None = None,
    **options: Any,
) -> Plan:
    """Compile a sampler into its table.

    Args:
        schedule: the model's noise levels and prediction type.
        sampler: a name in ``SAMPLERS``.
        num_inference_steps: rows of the table; without it all T for "ddpm" and 50 (or T, if that is less) for others.
        timestep_spacing: instead of the schedule's own.
        options: the sampler's own, such as ``eta``.

    Raises:
        RequestError: an argument is unknown or out of range.
    """
    known = sampler_options(sampler)
    for name in options:
        if name not in known:
            raise RequestError(f"sampler {sampler} has no option {name!r}; it has {', '.join(known) or 'none'}")
    if num_inference_steps is None:
        num_inference_steps = (
            schedule.num_train_timesteps if sampler == "ddpm" else min(50, schedule.num_train_timesteps)
        )
    spacing = timestep_spacing or schedule.timestep_spacing
    levels = select_levels(schedule, num_inference_steps, spacing)
    weights = np.stack(list(SAMPLERS[sampler](levels, schedule.prediction_type, **options)))
    originals = [predictions(level, schedule.prediction_type)[0] for level in levels[:-1]]
    return Plan(
        sampler=sampler,
        num_inference_steps=int(num_inference_steps),
        options=known | options | {"timestep_spacing": spacing},
        prediction_type=schedule.prediction_type,
        initial_scale=1.0,
        signal_scales=np.array([level.signal_scale for level in levels]),
        noise_scales=np.array([level.noise_scale for level in levels]),
        timesteps=np.array([level.timestep for level in levels[:-1]], dtype=np.float64),
        guidance=np.ones(len(levels) - 1),
        weights=weights,
        x0_weights=np.stack([original[[SAMPLE, OUTPUT]] for original in originals]),
    )
