"""How sure one can be of a figure: what it would have been with other samples from the same source.

The bootstrap (Efron 1979): the statistic is taken again and again of as many images drawn with replacement from those
that there are, and as many of each class, since it is not left to chance how many of a class are measured. Images that
are drawn twice bias some statistics, a Fréchet distance upwards and a recall downwards, all resamples alike; so the
interval is the resamples' about their mean, laid about the figure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.classifier.agreement import Int64
from training.evaluate.frechet import Float64

RESAMPLES = 500
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figure:
    """A statistic with its interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def in_words(self, digits: int, factor: float = 1.0) -> str:
        value, low, high = (f"{factor * number:.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def bootstrap(
    statistic: Callable[..., float],
    labels: tuple[Int64, ...],
    draws: np.random.Generator,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    progress: Callable[[int], None] = lambda done: None,
) -> Figure:
    """A statistic of one or several independent sets, with its 95 % interval.

    Args:
        statistic: takes for each set how often each of its members is there, float64 (N,).
        labels: the class of each member of each set, int64 (N,).
        draws: where the resamples come from.
        bounds: what the statistic cannot go beyond; the interval is cut off there.
        progress: is called with the number of resamples that were taken since it was called last: 1.
    """
    value = statistic(*(np.ones(len(each)) for each in labels))
    strata = [[np.flatnonzero(each == k) for k in np.unique(each)] for each in labels]
    resampled = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        resampled[k] = statistic(*(draw_counts(classes, draws) for classes in strata))
        progress(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = value + np.quantile(resampled, [tail, 1 - tail]) - resampled.mean()
    return Figure(value, float(np.clip(low, *bounds)), float(np.clip(high, *bounds)))


def draw_counts(classes: Sequence[Int64], draws: np.random.Generator) -> Float64:
    """How often each of N is there when as many of each class as there are are drawn with replacement, float64 (N,).

    Args:
        classes: the places of the members of each class.
        draws: where the numbers come from.
    """
    drawn = [members[draws.integers(len(members), size=len(members))] for members in classes]
    return np.bincount(np.concatenate(drawn), minlength=sum(map(len, classes))).astype(np.float64)
