"""Writes docs/samplers.md, the table of all samplers, and docs/convergence.svg: ``python -m tests.samplers_table``.

What is written is measured: rows, draws, order of convergence, and the difference from diffusers in every configuration
that the tests compare (some minutes).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np

from runtime.plan import SAMPLERS, compile_plan, sampler_options
from runtime.samplers import KNOWN_AS
from runtime.samplers.rows import NOISE
from tests.gaussian_mixture import SCHEDULE, errors
from tests.sampler_cases import (
    CASES,
    COUNTS,
    SCHEDULES,
    SIGMA_SPACINGS,
    Case,
    compare,
    sigma_spacings,
    timestep_spacings,
)

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURE = DOCS / "samplers.md", DOCS / "convergence.svg"

STEPS = 10
ORDER_COUNTS = (32, 64, 128)


class Facts(NamedTuple):
    """What one row of the first table says."""

    sampler: str
    known_as: str
    rows: int
    draws: int
    order: str
    spacings: str
    options: str

    def __str__(self) -> str:
        return f"| {' | '.join(map(str, self))} |"


def facts(sampler: str) -> Facts:
    plan = compile_plan(SCHEDULE, sampler, STEPS)
    draws = int(np.count_nonzero(plan.weights[:, NOISE]))
    options = sampler_options(sampler)
    levels = {"sigma_spacing", "sigma_min", "sigma_max", "final_sigmas_type"}
    if not SAMPLERS[sampler].selects_timesteps:
        spacings = "its own timesteps"
    else:
        spacings = "timesteps and σ" if "sigma_spacing" in options else "timesteps"
    own = ", ".join(f"`{name}={value!r}`" for name, value in options.items() if name not in levels)
    order = "" if draws or not SAMPLERS[sampler].selects_timesteps else f"{measured_order(sampler):.1f}"
    return Facts(f"`{sampler}`", KNOWN_AS[sampler], len(plan), draws, order, spacings, own)


def measured_order(sampler: str) -> float:
    """The slope of log error over log number of steps, for a mixture of Gaussians."""
    logs = np.log(list(errors(sampler, ORDER_COUNTS)))
    return float(-np.polyfit(np.log(ORDER_COUNTS), logs, 1)[0])


def single_precision(case: Case) -> float:
    """The largest difference where diffusers computes as it always does, for Stable Diffusion's own levels."""
    differences = (
        difference.samples
        for prediction_type in case.predicts
        for difference in compare(case, "stable-diffusion", "leading", None, prediction_type, (STEPS,), double=False)
    )
    return max(differences)


def double_precision(case: Case, sigma_spacing: str | None) -> float:
    """The largest difference in double precision, over every configuration that the tests compare."""
    differences = (
        difference.samples
        for schedule in SCHEDULES
        for timestep_spacing in timestep_spacings(case)
        for prediction_type in case.predicts
        for difference in compare(case, schedule, timestep_spacing, sigma_spacing, prediction_type)
    )
    return max(differences)


def compared(case: Case) -> str:
    """The first cells of a row of the second table, which are not measured."""
    timesteps = ", ".join(timestep_spacings(case)) if SAMPLERS[case.sampler].selects_timesteps else "its own"
    return f"| `{case}` | {case.scheduler.removesuffix('Scheduler')} | {timesteps} |"


def agreement(case: Case) -> str:
    cells = [
        f"{double_precision(case, spacing):.0e}" if spacing in sigma_spacings(case) else ABSENT
        for spacing in SIGMA_SPACINGS
    ]
    return f"{compared(case)} {' | '.join(cells)} | {single_precision(case):.0e} |"


ABSENT = "–"
HEADER = f"""# Samplers

Written by `python -m tests.samplers_table`; the figures are measured. [The page of the plan](plan.md) says what the
options mean and where diffusers is not followed, [another](samplers-drawn.md) what each of them draws.

## All of them

Rows are evaluations of the network, and draws are of fresh noise after the first, both for {STEPS} steps. The order of
convergence is measured on a mixture of Gaussians, from {ORDER_COUNTS[0]} to {ORDER_COUNTS[-1]} steps; samplers that
draw noise have none in this sense, and those of distilled networks have none. "timesteps" are leading, trailing and
linspace; "σ" adds Karras, exponential, beta and Align Your Steps.

| sampler | known as | rows | draws | order | spacings | options |
|---|---|---|---|---|---|---|
"""
FIGURE_TEXT = """
![Error over evaluations of the network, one line for each sampler](convergence.svg)

The mean distance from the exact probability flow, over evaluations of the network, at levels equal in log σ.
"""
AGREEMENT = f"""
## Agreement with diffusers {diffusers.__version__}

The largest difference from diffusers' samples in any row, in units of the largest value there, given the noise that it
drew: over {", ".join(map(str, COUNTS[:-1]))} and {COUNTS[-1]} steps, Stable Diffusion's schedule and a linear one, the
timestep spacings named, and every prediction type that the scheduler knows. diffusers computes in double precision
here, so that nothing but rounding is left. In its own single precision, with {STEPS} steps as Stable Diffusion takes
them, the difference is that in the last column. {ABSENT} is what the scheduler does not have.

| sampler | scheduler | timesteps | plain | Karras | exponential | beta | single precision |
|---|---|---|---|---|---|---|---|
"""


def page() -> Iterator[str]:
    yield HEADER
    yield from (f"{facts(sampler)}\n" for sampler in SAMPLERS)
    yield FIGURE_TEXT
    yield AGREEMENT
    yield from (f"{agreement(case)}\n" for case in CASES)


DRAWN = ("ddim", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis", "pndm", "lms", "unipc")


def draw_convergence(path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "convergence", "font.size": 9}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    counts = (8, 16, 32, 64, 128)
    for sampler, marker in zip(DRAWN, "osDv^<>Pph", strict=True):
        rows = [count * 2 if sampler in ("heun", "dpm2") else count for count in counts]
        axes.loglog(rows, list(errors(sampler, counts)), marker=marker, markersize=4, linewidth=1, label=sampler)
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel("mean error")
    axes.set_xticks(ticks := [8, 16, 32, 64, 128, 256], list(map(str, ticks)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    text = "".join(page())
    draw_convergence(FIGURE)
    PAGE.write_text(text, "utf-8")
