"""The flags that choose a sampler, its noise levels and its guidance; ``draw`` and ``plan`` share them."""

from __future__ import annotations

import argparse
import json
import stat
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import RequestError, one_line
from runtime.model_plan import plan_for
from runtime.noise_levels import FINAL_SIGMAS_TYPES, SPACINGS
from runtime.plan import PLAN_OPTIONS, SAMPLERS, Plan, sampler_options
from runtime.sigma_spacings import SIGMA_SPACINGS

MAX_PLAN_BYTES = 64 * 2**20
# Flags that are options of ``compile_plan`` under their own names; whatever else there is goes by --sampler-option.
OPTIONS = (
    "eta",
    "variance",
    "timestep_spacing",
    "sigma_spacing",
    "sigma_min",
    "sigma_max",
    "final_sigmas_type",
    "rescale_betas_zero_snr",
    "guidance_interval",
    "guidance_rescale",
    "clip_sample",
)
# What --sampler-option may name. Whether the sampler in question has it is for ``compile_plan`` to say.
SAMPLER_OPTIONS = PLAN_OPTIONS.keys() | {"timestep_spacing"}.union(*map(sampler_options, SAMPLERS))


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; ``chosen_plan`` and ``plan_settings`` read them."""
    group = parser.add_argument_group("sampler", "docs/plan.md says what each does")
    group.add_argument("--sampler", help=f"{', '.join(sorted(SAMPLERS))}, or its other names (default: the model's)")
    group.add_argument("--steps", type=int, help="steps of the sampler (default: the model's; for ddpm all)")
    group.add_argument("--plan", type=Path, metavar="FILE", help="run a saved plan instead (see: plan --json)")
    group.add_argument("--spacing", dest="timestep_spacing", help=f"{', '.join(SPACINGS)} (default: the model's)")
    group.add_argument("--sigma-spacing", help=f"{', '.join(SIGMA_SPACINGS)} (default: that of the timesteps)")
    group.add_argument("--sigma-min", type=float, help="least sigma of a sigma spacing")
    group.add_argument("--sigma-max", type=float, help="largest sigma of a sigma spacing")
    group.add_argument("--final-sigmas-type", help=f"where the last row leads: {' or '.join(FINAL_SIGMAS_TYPES)}")
    group.add_argument(
        "--rescale-betas-zero-snr", action="store_true", default=None, help="no signal at the last timestep"
    )
    group.add_argument("--guidance-interval", metavar="LOW,HIGH", help="guide only between these sigmas")
    group.add_argument("--guidance-rescale", type=float, help="0 (off) to 1: against overexposure by guidance")
    group.add_argument("--clip-sample", type=float, metavar="BOUND", help="keep the predicted image within +- BOUND")
    group.add_argument("--eta", type=float, help="ddim: 0 is deterministic, 1 has DDPM's variance")
    group.add_argument("--variance", help="ddpm: variance of the added noise, posterior or beta")
    group.add_argument(
        "--sampler-option", action="append", default=[], metavar="NAME=VALUE", help="any other option of a sampler"
    )


def plan_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as arguments of a pipeline.

    Raises:
        RequestError: a flag cannot be read, the file is no plan, or --plan comes with flags that would make another.
    """
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if "guidance_interval" in options:
        options["guidance_interval"] = parse_interval(options["guidance_interval"])
    for text in arguments.sampler_option:
        name, value = parse_option(text)
        if name in options and options[name] != value:
            raise RequestError(f"{name} is given twice, as {options[name]!r} and as {value!r}")
        options[name] = value
    named = {"sampler": arguments.sampler, "num_inference_steps": arguments.steps}
    settings = {name: value for name, value in named.items() if value is not None} | options
    if arguments.plan is None:
        return settings
    if settings:
        raise RequestError(f"--plan {arguments.plan} is whole; leave out {', '.join(settings)}")
    return {"plan": read_plan(arguments.plan)}


def chosen_plan(bundle: Bundle, arguments: argparse.Namespace) -> Plan:
    """The plan that the flags make, for a bundle.

    Raises:
        RequestError: as ``plan_settings``, or an option is unknown or out of range.
    """
    settings = plan_settings(arguments)
    plan: Plan = settings["plan"] if "plan" in settings else plan_for(bundle, **settings)
    return plan


def parse_interval(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise RequestError(f"guidance interval {text!r} must be two sigmas with a comma between them: 0.3,5") from None
    return low, high


def parse_option(text: str) -> tuple[str, Any]:
    """A name, and a number, true, false, null or a word.

    Raises:
        RequestError: it is no NAME=VALUE, or no sampler has an option of the name.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise RequestError(f"sampler option {text!r} must be NAME=VALUE, such as solver_order=3")
    if name not in SAMPLER_OPTIONS:
        raise RequestError(f"no sampler has an option {name!r}; there are {', '.join(sorted(SAMPLER_OPTIONS))}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def read_plan(path: Path) -> Plan:
    """A plan that ``python -m runtime plan --json -o FILE`` wrote.

    Raises:
        RequestError: the file cannot be read, is too large, or is no plan.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, and a device may have no end
            raise RequestError(f"the plan {path} is no file")
        if status.st_size > MAX_PLAN_BYTES:
            raise RequestError(f"{path} has {status.st_size} bytes; a plan has at most {MAX_PLAN_BYTES}")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"the plan {path} cannot be read ({error.strerror})") from error
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON ({one_line(error)})") from error
    try:
        return Plan.from_json(value)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
