"""What the U-Net is told beside sample and timestep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.session import Array


@dataclass(frozen=True)
class Conditioning:
    """The U-Net's inputs beside sample and timestep, by name: with the condition and without. B rows each."""

    cond: Mapping[str, Array]
    uncond: Mapping[str, Array]

    def __getitem__(self, rows: slice) -> Conditioning:
        """Those of some of the images."""
        return Conditioning(
            {name: value[rows] for name, value in self.cond.items()},
            {name: value[rows] for name, value in self.uncond.items()},
        )

    def both(self) -> dict[str, Array]:
        """One after the other in one batch, without the condition first."""
        return {name: np.concatenate([self.uncond[name], self.cond[name]]) for name in self.cond}
