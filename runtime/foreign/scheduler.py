"""diffusers' ``scheduler_config.json`` as a noise schedule and the name of a sampler."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.errors import BundleError, RequestError
from runtime.foreign.parts import one_of, said
from runtime.noise_schedule import PREDICTION_TYPES, Float64, NoiseSchedule, rescale_zero_terminal_snr
from runtime.plan import SPACINGS, is_finite_number
from runtime.samplers import find_sampler

logger = logging.getLogger(__name__)

MAX_TRAIN_TIMESTEPS = 10**6
FALLBACK_SAMPLER = "ddim"
# What diffusers' classes do where their file does not say.
LEADING = ("ddpm", "ddim", "pndm", "lcm", "tcd")
FINAL_ALPHA_OF_FIRST_TIMESTEP = ("pndm",)
SUFFIXES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}


def read_scheduler(config: Mapping[str, Any], where: str) -> tuple[NoiseSchedule, str]:
    """The schedule a model was trained with, and the sampler it comes with.

    Args:
        config: the file's JSON object. What it leaves out has diffusers' defaults.
        where: the file, for messages.

    Raises:
        BundleError: a value has another type, is out of range, or is not known here.
    """
    sampler = read_sampler(config, where)
    family = find_sampler(sampler)[0]
    alphas_cumprod: Float64 = np.cumprod(1 - read_betas(config, where), dtype=np.float64)
    of_first = family in FINAL_ALPHA_OF_FIRST_TIMESTEP
    to_one = said(config, "set_alpha_to_one", bool, not of_first, where)
    offset = said(config, "steps_offset", int, 0, where)
    if not 0 <= offset < len(alphas_cumprod):
        raise BundleError(f"{where}: steps_offset is {offset}; it must be 0 to {len(alphas_cumprod) - 1}")
    try:
        schedule = NoiseSchedule(
            alphas_cumprod=alphas_cumprod,
            prediction_type=one_of(config, "prediction_type", PREDICTION_TYPES, "epsilon", where),
            timestep_spacing=one_of(
                config, "timestep_spacing", SPACINGS, "leading" if family in LEADING else "linspace", where
            ),
            steps_offset=offset,
        )
        if said(config, "rescale_betas_zero_snr", bool, False, where):
            schedule = rescale_zero_terminal_snr(schedule)
    except RequestError as error:
        raise BundleError(f"{where}: {error}") from error
    final = 1.0 if to_one else float(schedule.alphas_cumprod[0])
    return replace(schedule, final_alpha_cumprod=final), sampler


def read_sampler(config: Mapping[str, Any], where: str) -> str:
    """The sampler that a scheduler's class stands for; one that is not known becomes DDIM, and that is said."""
    name = said(config, "_class_name", str, "", where)
    try:
        sampler = find_sampler(name)[0]
    except RequestError:
        logger.warning("%s: %r is no sampler of this program; %s is the default instead", where, name, FALLBACK_SAMPLER)
        return FALLBACK_SAMPLER
    if sampler == "dpmpp_2m" and said(config, "algorithm_type", str, "", where).startswith("sde"):
        sampler = "dpmpp_2m_sde"
    for key, suffix in SUFFIXES.items():
        if said(config, key, bool, False, where):
            return f"{sampler}_{suffix}"
    return sampler


def read_betas(config: Mapping[str, Any], where: str) -> Float64:
    """β by training timestep, float64 (T,)."""
    count = said(config, "num_train_timesteps", int, 1000, where)
    if not 1 <= count <= MAX_TRAIN_TIMESTEPS:
        raise BundleError(f"{where}: num_train_timesteps is {count}; it must be 1 to {MAX_TRAIN_TIMESTEPS}")
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list) or len(trained) != count or not all(is_beta(beta) for beta in trained):
            raise BundleError(f"{where}: trained_betas must be {count} numbers between 0 and 1")
        return np.asarray(trained, np.float64)
    kind = one_of(config, "beta_schedule", ("linear", "scaled_linear"), "linear", where)
    start, end = (config.get(key, default) for key, default in (("beta_start", 1e-4), ("beta_end", 0.02)))
    if not is_beta(start) or not is_beta(end) or start > end:
        raise BundleError(f"{where}: betas from {start!r} to {end!r}: they must lie between 0 and 1 and not decrease")
    power = 1.0 if kind == "linear" else 0.5
    return np.linspace(start**power, end**power, count) ** (1 / power)


def is_beta(value: object) -> bool:
    return isinstance(value, int | float) and is_finite_number(value) and 0 < value < 1
