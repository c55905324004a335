"""Samplers as tables: one row for each evaluation of the network, compiled in float64.

Terms, as in the papers:

    ᾱ (alphas_cumprod)   share of the signal's variance that is left
    signal_scale s       √ᾱ         noise_scale n   √(1 - ᾱ)
    x                    the sample, in the variance-preserving scale: x = s·x_0 + n·ε
    o                    what the network says of x (guided): ε, v = s·ε - n·x_0, or x_0, by its prediction type
    z                    fresh standard normal noise

Nearly every sampler computes the next x as a *linear* combination of the last samples, the last outputs and fresh
noise. So a sampler (``runtime.samplers``) is a small function that walks noise levels (``runtime.noise_levels``) and
writes each row as a combination of nine unit vectors: four samples (newest first), four outputs, one noise. What a
host needs of it are the numbers.

It is all NumPy and holds no state, so that it serves as schedulers for anyone's model: see ``docs/plan.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import RequestError
from runtime.limits import check_choice, check_clip, check_share, check_whole, is_finite_number
from runtime.noise_levels import SPACINGS, select_timesteps
from runtime.noise_schedule import PREDICTION_TYPES, Float64, Level, NoiseSchedule, rescale_zero_terminal_snr
from runtime.samplers import SAMPLERS, find_sampler, option_defaults, sampler_options
from runtime.samplers.rows import COLUMNS, OUTPUT, SAMPLE, predictions

__all__ = [
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SPACINGS",
    "Float64",
    "NoiseSchedule",
    "Plan",
    "compile_plan",
    "find_sampler",
    "is_finite_number",
    "rescale_zero_terminal_snr",
    "sampler_options",
    "select_timesteps",
]

# What any plan may be compiled with, beside the options of its sampler.
PLAN_OPTIONS: dict[str, Any] = {
    "strength": 1.0,
    "rescale_betas_zero_snr": False,
    "guidance_interval": None,
    "guidance_rescale": 0.0,
    "clip_sample": None,
}


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
            RequestError: a key is missing or unknown, an array has another shape, or a number is out of range.
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
        check_facts(value)
        check_arrays(arrays)
        if value["clip_sample"] is not None and not arrays["x0_weights"][:, 1].all():
            raise RequestError("the plan has clip_sample, but a row whose x0_weights make nothing of the output")
        return cls(**(value | arrays))


def check_arrays(arrays: Mapping[str, Float64]) -> None:
    """What a table of the right shape can still have wrong."""
    if arrays["guidance"].min() < 0 or arrays["guidance"].max() > 1:
        raise RequestError("the plan's guidance must lie in [0, 1]")
    if np.abs(arrays["signal_scales"] ** 2 + arrays["noise_scales"] ** 2 - 1).max() > 1e-6:
        raise RequestError("the squares of the plan's signal_scales and noise_scales must sum to one")
    for i, row in enumerate(arrays["weights"][:3]):
        if row[[*range(SAMPLE + i + 1, OUTPUT), *range(OUTPUT + i + 1, OUTPUT + 4)]].any():
            raise RequestError(f"row {i} of the plan's weights uses samples or outputs from before its first row")


def check_facts(value: Mapping[str, Any]) -> None:
    options, taken = value["options"], {"schedule", "sampler", "num_inference_steps"}
    if not isinstance(value["sampler"], str) or not isinstance(options, dict) or taken & options.keys():
        raise RequestError(f"the plan's sampler must be a string, and its options an object without {sorted(taken)}")
    if value["prediction_type"] not in PREDICTION_TYPES:
        raise RequestError(f"prediction_type {value['prediction_type']!r} is unknown; it is one of {PREDICTION_TYPES}")
    if not is_finite_number(value["initial_scale"]):
        raise RequestError(f"the plan's initial_scale is {value['initial_scale']!r}; it must be a finite number")
    check_whole("the plan's num_inference_steps", value["num_inference_steps"], least=1)
    check_share("the plan's guidance_rescale", value["guidance_rescale"])
    check_clip(value["clip_sample"], "the plan's clip_sample")


def finite_array(name: str, value: object, shape: tuple[int, ...]) -> Float64:
    """A JSON list of numbers as an array of a known shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise RequestError(f"the plan's {name} must be finite numbers of shape {shape}")
    return array


def compile_plan(
    schedule: NoiseSchedule,
    /,
    sampler: str = "ddim",
    num_inference_steps: int | None = None,
    timestep_spacing: str | None = None,
    **options: Any,
) -> Plan:
    """Compile a sampler into its table.

    Args:
        schedule: the model's noise levels and prediction type.
        sampler: a name in ``SAMPLERS``, or one that people know, such as "DPM++ 2M Karras".
        num_inference_steps: steps of the sampler; without it all T for "ddpm", 4 for "lcm" and "tcd", and 50 (or T, if
            that is less) for others. Samplers of two rows a step have nearly twice as many rows.
        timestep_spacing: instead of the schedule's own.
        options: the sampler's own, such as ``eta``, and those of its noise levels, such as ``sigma_spacing``, both of
            which ``sampler_options`` lists; and these, which go with every sampler:
            strength: share of the steps that are taken, the last ones; for image to image, from
                x_0 = signal_scales[0] · image + noise_scales[0] · noise.
            rescale_betas_zero_snr: no signal at the last timestep, see ``rescale_zero_terminal_snr``.
            guidance_interval: (low, high): guide only where low < σ ≤ high (Kynkäänniemi et al. 2024).
            guidance_rescale: φ of rescaled guidance (Lin et al. 2024, section 3.4), from 0, which is off, to 1.
            clip_sample: bound of the predicted original sample, or None.

    Raises:
        RequestError: an argument is unknown or out of range.
    """
    name, options = known_options(sampler, options)
    if options.get("rescale_betas_zero_snr"):
        schedule = rescale_zero_terminal_snr(schedule)
    if num_inference_steps is None:
        default = SAMPLERS[name].default_steps or schedule.num_train_timesteps
        num_inference_steps = min(default, schedule.num_train_timesteps)
    spacing = choose_spacing(schedule, name, timestep_spacing)
    levels = choose_levels(schedule, name, num_inference_steps, spacing, options)
    rows = list(SAMPLERS[name].rows(schedule, levels, **chosen(options, SAMPLERS[name].rows)))
    visited = [row.level for row in rows]
    return Plan(
        sampler=name,
        num_inference_steps=int(num_inference_steps),
        options=options | {"timestep_spacing": spacing},
        prediction_type=schedule.prediction_type,
        initial_scale=initial_scale(name, spacing, levels[0]),
        signal_scales=np.array([level.signal_scale for level in [*visited, levels[-1]]]),
        noise_scales=np.array([level.noise_scale for level in [*visited, levels[-1]]]),
        timesteps=np.array([level.timestep for level in visited], dtype=np.float64),
        guidance=guidance_column(visited, options.get("guidance_interval")),
        weights=np.stack([row.weights for row in rows]),
        x0_weights=np.stack([predictions(level, schedule.prediction_type)[0][[SAMPLE, OUTPUT]] for level in visited]),
        clip_sample=check_clip(options.get("clip_sample")),
        guidance_rescale=check_share("guidance_rescale", options.get("guidance_rescale", 0.0)),
    )


def known_options(sampler: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The sampler's own name, and its options: their defaults, what the name implies, and what is given."""
    name, implied = find_sampler(sampler)
    known = sampler_options(name)
    for option, value in {**implied, **options}.items():
        if option not in known | PLAN_OPTIONS:
            raise RequestError(f"sampler {name} has no option {option!r}; it has {', '.join([*known, *PLAN_OPTIONS])}")
        if option in implied and implied[option] != value:
            raise RequestError(f"sampler {sampler!r} means {option} {implied[option]!r}, but {value!r} is asked for")
    given = {option: list(value) if isinstance(value, tuple) else value for option, value in options.items()}
    return name, known | implied | given


def chosen(options: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Those options that are the function's."""
    return {option: value for option, value in options.items() if option in option_defaults(function)}


def choose_spacing(schedule: NoiseSchedule, sampler: str, timestep_spacing: str | None) -> str | None:
    if SAMPLERS[sampler].selects_timesteps:
        if timestep_spacing is None:
            return schedule.timestep_spacing
        check_choice("timestep_spacing", timestep_spacing, SPACINGS)
        return timestep_spacing
    if timestep_spacing is not None:
        raise RequestError(
            f"sampler {sampler} has timesteps of its own; leave out timestep_spacing {timestep_spacing!r}"
        )
    return None


def choose_levels(
    schedule: NoiseSchedule, sampler: str, count: int, spacing: str | None, options: Mapping[str, Any]
) -> list[Level]:
    """The levels from where the plan starts, all of them such that the network's output there tells x_0."""
    levels = SAMPLERS[sampler].levels(schedule, count, spacing, **chosen(options, SAMPLERS[sampler].levels))
    strength = check_share("strength", options.get("strength", 1.0))
    taken = min(int(count * strength), count)
    if taken < 1:
        raise RequestError(f"strength {strength} of {count} steps leaves none; it must be at least {1 / count:.4g}")
    levels = levels[len(levels) - 1 - taken :]
    if schedule.prediction_type == "epsilon" and levels[0].alpha_cumprod == 0:
        raise RequestError(
            f"no signal is left at timestep {levels[0].timestep:g}, where epsilon tells nothing of the image; "
            "it takes a model of another prediction_type, or timestep_spacing leading"
        )
    return levels


def initial_scale(sampler: str, spacing: str | None, start: Level) -> float:
    """What unit noise is multiplied by.

    Where no signal is left that is one. Samplers of k-diffusion start at σ·noise, which is noise_scale·noise here; with
    "leading" timesteps diffusers takes √(σ² + 1) for σ, so that the start has the variance of a noisy image.
    """
    return start.noise_scale if SAMPLERS[sampler].starts_at_sigma and spacing != "leading" else 1.0


def guidance_column(visited: list[Level], interval: object) -> Float64:
    if interval is None:
        return np.ones(len(visited))
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_finite_number, interval))):
        raise RequestError(f"guidance_interval is {interval!r}; it must be two sigmas, (low, high)")
    low, high = interval
    column = np.array([float(low < level.sigma <= high) for level in visited])
    if not column.any():
        raise RequestError(
            f"guidance_interval {interval!r} holds none of the plan's sigmas, "
            f"which fall from {visited[0].sigma:.4g} to {visited[-1].sigma:.4g}"
        )
    return column
