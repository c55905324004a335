"""The rows of a plan, written as combinations of what a host holds when it comes to them.

A combination is a vector of nine weights: for the last four samples (newest first), the last four outputs of the
network, and one fresh noise. The predicted original sample, the predicted noise and all that is computed from them are
such vectors, so that a sampler is written down as in its paper, and what comes out are the numbers of its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from runtime.noise_schedule import Float64, Level

COLUMNS = 9
SAMPLE, OUTPUT, NOISE = 0, 4, 8  # first column of each kind
COLUMN_NAMES = ("x_i", "x_i-1", "x_i-2", "x_i-3", "o_i", "o_i-1", "o_i-2", "o_i-3", "z_i")


class Row(NamedTuple):
    """One evaluation of the network.

    Attributes:
        level: of x_i; its timestep is what the network is told.
        weights: x_{i+1} as a combination, in the variance-preserving scale, float64 (9,).
    """

    level: Level
    weights: Float64


Rows = Iterator[Row]


def unit(column: int) -> Float64:
    """The combination that is one column alone."""
    vector = np.zeros(COLUMNS)
    vector[column] = 1
    return vector


def aged(combination: Float64) -> Float64:
    """The same value seen from the next row, where x_i has become x_{i-1} and o_i has become o_{i-1}.

    Raises:
        ValueError: it holds a noise, or a sample or output that is then out of reach.
    """
    if combination[[SAMPLE + 3, OUTPUT + 3, NOISE]].any():
        raise ValueError(f"the combination {combination} cannot be told from one row later")
    shifted = np.roll(combination, 1)
    shifted[[SAMPLE, OUTPUT, NOISE]] = 0
    return shifted


def predictions(
    level: Level, prediction_type: str, sample: Float64 | None = None, output: Float64 | None = None
) -> tuple[Float64, Float64]:
    """Predicted original sample x_0 and noise ε as combinations (Salimans & Ho 2022, appendix D).

    ``sample`` and ``output`` are x_i and o_i unless others are given.
    """
    x = unit(SAMPLE) if sample is None else sample
    o = unit(OUTPUT) if output is None else output
    s, n = level.signal_scale, level.noise_scale
    if prediction_type == "epsilon":
        return (x - n * o) / s, o
    if prediction_type == "v_prediction":
        return s * x - n * o, n * x + s * o
    return o, (x - s * o) / n


def sample_at(level: Level) -> Float64:
    """x_i in the scale where the signal is not shrunk, x_0 + σ·ε, in which k-diffusion and the solvers are written."""
    return unit(SAMPLE) / level.signal_scale


def sum_of(weights: Sequence[float], combinations: Sequence[Float64]) -> Float64:
    """A combination of combinations."""
    return np.asarray(weights, dtype=np.float64) @ np.stack(combinations)
