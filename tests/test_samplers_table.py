"""Proves that docs/samplers.md is up to date, where that is quick to say, and that the example of docs/plan.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.plan import SAMPLERS, find_sampler
from runtime.samplers import KNOWN_AS
from tests.gaussian_mixture import DEVIATION, MEAN, output
from tests.sampler_cases import CASES, SIGMA_SPACINGS, Case, sigma_spacings
from tests.samplers_table import ABSENT, PAGE, compared, facts

TEXT = PAGE.read_text("utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", (PAGE.parent / "plan.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_listed_as_it_is(sampler: str) -> None:
    assert str(facts(sampler)) in TEXT.splitlines()
    assert find_sampler(KNOWN_AS[sampler]) == (sampler, {})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_compared_is_listed(case: Case) -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith(compared(case))]
    assert len(lines) == 1
    cells = lines[0].removeprefix(compared(case)).strip(" |").split(" | ")
    assert len(cells) == len(SIGMA_SPACINGS) + 1
    for cell, spacing in zip(cells, SIGMA_SPACINGS, strict=False):
        assert (cell == ABSENT) == (spacing not in sigma_spacings(case))
        assert cell == ABSENT or float(cell) < 1e-9
    assert float(cells[-1]) < 1e-4


def test_nothing_else_is_listed() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    assert len(rows) == len(SAMPLERS) + len(CASES)


def test_the_example_draws() -> None:
    """With the network of a mixture of Gaussians for a model, it draws from that mixture."""
    assert EXAMPLE
    assert len(EXAMPLE[1].splitlines()) <= 20
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)

    def model(sample: np.ndarray, timestep: float) -> np.ndarray:
        alpha_cumprod = np.interp(timestep, np.arange(1000), alphas_cumprod)
        return output(sample, np.sqrt(alpha_cumprod), np.sqrt(1 - alpha_cumprod))

    names: dict[str, Any] = {"seed": 0, "shape": (4000,), "model": model}
    exec(EXAMPLE[1], names)
    assert abs(names["image"].mean() - MEAN) < 0.06
    assert abs(names["image"].std() - DEVIATION) < 0.05


def test_the_figure_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / Path(target)).is_file(), target
