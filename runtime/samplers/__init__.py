"""Every sampler by name: a small function from noise levels to the rows of a plan."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime.errors import RequestError
from runtime.noise_levels import SigmaLevels, consistency_levels, training_levels, trajectory_levels
from runtime.noise_schedule import Level
from runtime.samplers import adams, consistency, diffusion, dpm_solver, k_diffusion, unipc
from runtime.samplers.rows import Rows


class Sampler(NamedTuple):
    """What a name stands for.

    Attributes:
        rows: (schedule, levels, **options) → rows.
        levels: (schedule, num_inference_steps, timestep_spacing, **options) → levels of x_0 .. x_N.
        starts_at_sigma: whether x_0 is σ·noise in x̂ = x_0 + σ·ε, rather than unit noise; see ``initial_scale``.
        selects_timesteps: whether timestep_spacing means anything to it.
        default_steps: num_inference_steps unless something else is said; None is all.
    """

    rows: Callable[..., Rows]
    levels: Callable[..., list[Level]]
    starts_at_sigma: bool = False
    selects_timesteps: bool = True
    default_steps: int | None = 50


K_DIFFUSION = SigmaLevels()
SOLVER = SigmaLevels(whole=True)
SOLVER_TO_SIGMA_MIN = SigmaLevels(whole=True, final_sigmas_type="sigma_min")
DPM2 = SigmaLevels(round_karras=True)

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(diffusion.ddpm, training_levels, default_steps=None),
    "ddim": Sampler(diffusion.ddim, training_levels),
    "pndm": Sampler(diffusion.pndm, training_levels),
    "lms": Sampler(adams.lms, K_DIFFUSION, starts_at_sigma=True),
    "euler": Sampler(k_diffusion.euler, K_DIFFUSION, starts_at_sigma=True),
    "euler_ancestral": Sampler(k_diffusion.euler_ancestral, K_DIFFUSION, starts_at_sigma=True),
    "heun": Sampler(k_diffusion.heun, K_DIFFUSION, starts_at_sigma=True),
    "dpm2": Sampler(k_diffusion.dpm2, DPM2, starts_at_sigma=True),
    "dpm2_ancestral": Sampler(k_diffusion.dpm2_ancestral, DPM2, starts_at_sigma=True),
    "dpmpp_2m": Sampler(dpm_solver.dpmpp_2m, SOLVER),
    "dpmpp_3m": Sampler(dpm_solver.dpmpp_3m, SOLVER),
    "dpmpp_2s": Sampler(dpm_solver.dpmpp_2s, SOLVER),
    "dpmpp_sde": Sampler(dpm_solver.dpmpp_sde, K_DIFFUSION, starts_at_sigma=True),
    "dpmpp_2m_sde": Sampler(dpm_solver.dpmpp_2m_sde, SOLVER),
    "dpmpp_3m_sde": Sampler(dpm_solver.dpmpp_3m_sde, SOLVER),
    "unipc": Sampler(unipc.unipc, SOLVER),
    "deis": Sampler(adams.deis, SOLVER_TO_SIGMA_MIN),
    "sa_solver": Sampler(adams.sa_solver, SOLVER_TO_SIGMA_MIN),
    "lcm": Sampler(consistency.lcm, consistency_levels, selects_timesteps=False, default_steps=4),
    "tcd": Sampler(consistency.tcd, trajectory_levels, selects_timesteps=False, default_steps=4),
}

# What people call them.
KNOWN_AS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_3m": "DPM++ 3M",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "sa_solver": "SA-Solver",
    "lcm": "LCM",
    "tcd": "TCD",
}

# Other names, in the form that ``simplified`` gives them. Classes of diffusers go by their default options.
ALIASES = {
    "plms": "pndm",
    "lmsdiscrete": "lms",
    "eulerdiscrete": "euler",
    "eulera": "euler_ancestral",
    "eulerancestraldiscrete": "euler_ancestral",
    "heundiscrete": "heun",
    "kdpm2discrete": "dpm2",
    "dpm2a": "dpm2_ancestral",
    "kdpm2ancestraldiscrete": "dpm2_ancestral",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpmsolversinglestep": "dpmpp_2s",
    "dpmsolversde": "dpmpp_sde",
    "unipcmultistep": "unipc",
    "deismultistep": "deis",
}
SUFFIXES = {
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
    "alignyoursteps": "align_your_steps",
    "ays": "align_your_steps",
}


def find_sampler(name: str) -> tuple[str, dict[str, Any]]:
    """The name in ``SAMPLERS`` and the options that a name people know stands for.

    >>> find_sampler("DPM++ 2M Karras")
    ('dpmpp_2m', {'sigma_spacing': 'karras'})

    Raises:
        RequestError: no sampler has the name; the message has all names, and those that are close.
    """
    if not isinstance(name, str):
        raise RequestError(f"sampler is {name!r}; it must be a name, such as {next(iter(SAMPLERS))!r}")
    known = {simplified(canonical): canonical for canonical in SAMPLERS} | ALIASES
    wanted = simplified(name)
    if wanted in known:
        return known[wanted], {}
    for suffix, spacing in SUFFIXES.items():
        if wanted.removesuffix(suffix) in known:
            return known[wanted.removesuffix(suffix)], {"sigma_spacing": spacing}
    close = dict.fromkeys(known[match] for match in difflib.get_close_matches(wanted, known, n=4))
    hint = f"; closest: {', '.join(close)}" if close else ""
    raise RequestError(f"sampler {name!r} is unknown; choose {', '.join(sorted(SAMPLERS))}{hint}")


def simplified(name: str) -> str:
    """Letters and digits alone, without what k-diffusion and diffusers put around a name."""
    words = re.sub(r"^(k|sample)_", "", name.strip().lower()).replace("+", "p")
    return re.sub(r"[^a-z0-9]", "", words).removesuffix("scheduler")


def option_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of the parameters that may be left out."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def sampler_options(sampler: str) -> dict[str, Any]:
    """The options of a sampler and their defaults: its own, and those of its noise levels.

    Raises:
        RequestError: the sampler is unknown.
    """
    found = SAMPLERS[find_sampler(sampler)[0]]
    return option_defaults(found.rows) | option_defaults(found.levels)
