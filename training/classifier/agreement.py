"""How often what was read is what was asked for, and how sure one can be of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Proportion:
    """``hits`` of ``count`` trials."""

    hits: int
    count: int

    @property
    def rate(self) -> float:
        return self.hits / self.count if self.count else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The score interval for the rate (Wilson 1927), which holds near 0 and 1 too, where rates here mostly lie."""
        if not self.count:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        centre = (self.hits + z**2 / 2) / (self.count + z**2)
        spread = z * math.sqrt(self.count * self.rate * (1 - self.rate) + z**2 / 4) / (self.count + z**2)
        # At 0 and 1 the interval ends at the rate itself, which rounding would just miss.
        return max(0.0, min(self.rate, centre - spread)), min(1.0, max(self.rate, centre + spread))

    def to_json(self) -> dict[str, float | int | None]:
        low, high = self.interval()
        return {
            "hits": self.hits,
            "count": self.count,
            "rate": self.rate if self.count else None,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Agreement:
    """Counts of asked (rows) and read (columns) classes, int64 (K, K)."""

    confusion: Int64

    @classmethod
    def between(cls, asked: Int64, read: Int64, num_classes: int) -> Agreement:
        """Count.

        Args:
            asked: labels from 0 to K - 1, (N,).
            read: likewise.
            num_classes: K.
        """
        return cls(np.bincount(asked * num_classes + read, minlength=num_classes**2).reshape(num_classes, num_classes))

    @property
    def overall(self) -> Proportion:
        return Proportion(int(self.confusion.trace()), int(self.confusion.sum()))

    @property
    def by_class(self) -> list[Proportion]:
        asked = self.confusion.sum(axis=1)
        return [Proportion(int(self.confusion[k, k]), int(asked[k])) for k in range(len(self.confusion))]

    def table(self, class_names: Sequence[str] = ()) -> str:
        """One line for each class, by name or else by number, and one for all, with 95 % intervals."""
        names = class_names or [str(k) for k in range(len(self.confusion))]
        named = [*zip(names, self.by_class, strict=True), ("all", self.overall)]
        width = max(len("class"), *map(len, names))
        lines = [f"{'class':>{width}}  {'images':>6}  {'agree':>6}  {'%':>6}  95 % interval"]
        for name, proportion in named:
            low, high = proportion.interval()
            lines.append(
                f"{name:>{width}}  {proportion.count:6}  {proportion.hits:6}  {100 * proportion.rate:6.2f}  "
                f"{100 * low:.2f} to {100 * high:.2f}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        return {
            "overall": self.overall.to_json(),
            "by_class": [proportion.to_json() for proportion in self.by_class],
            "confusion": self.confusion.tolist(),
        }
