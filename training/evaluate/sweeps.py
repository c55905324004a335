"""The same request at several guidance scales or numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.evaluate.draw import Request
from training.evaluate.figures import Figures


@dataclass(frozen=True)
class Sweep:
    """One thing that is varied.

    Attributes:
        field: of ``Request``: ``guidance_scale`` or ``steps``.
        values: of the field, in the order they are shown.
    """

    field: str
    values: Sequence[float]

    @property
    def name(self) -> str:
        return self.field.replace("_", "-")

    def requests(self, wanted: Request) -> list[Request]:
        """A request for each value."""
        changes: list[dict[str, Any]] = [{self.field: value} for value in self.values]
        return [replace(wanted, **change) for change in changes]

    def file(self, folder: Path, value: float) -> Path:
        """Where the images of a value go."""
        return folder / f"{self.name}-{value:g}.npz"

    def to_json(self, found: Sequence[Figures]) -> list[dict[str, Any]]:
        return [{self.field: value} | figures.to_json() for value, figures in zip(self.values, found, strict=True)]

    def table(self, found: Sequence[Figures]) -> str:
        """The figures of each value, a line for each."""
        heads = ("agreement, %", "Fréchet distance", "precision, %", "recall, %", "nearer than real, %")
        lines = [f"{self.name.replace('-', ' '):>14}" + "".join(f"  {head:>22}" for head in heads)]
        for value, figures in zip(self.values, found, strict=True):
            overall, likeness = figures.agreement.overall, figures.likeness
            low, high = overall.interval()
            cells = (
                f"{100 * overall.rate:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                likeness.frechet_distance.in_words(2),
                likeness.precision.in_words(1, 100),
                likeness.recall.in_words(1, 100),
                figures.nearer.in_words(1, 100),
            )
            lines.append(f"{value:>14g}" + "".join(f"  {cell:>22}" for cell in cells))
        return "\n".join(lines)
