"""What the U-Net is told beside sample and timestep.

Shapes: B images in a batch, C H W the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.session import Array

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


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


@dataclass(frozen=True)
class Between:
    """Two conditions that have nothing between them, such as labels: the network is told each, and its outputs mixed.

    A weighted sum of what the network says to several conditions leads to what fits them together (Liu et al. 2022,
    "Compositional visual generation with composable diffusion models", eq. 11, with weights that add up to one).

    Attributes:
        first, second: of B images each.
        shares: how much of the second, from 0 to 1, float64 (B,).
    """

    first: Conditioning
    second: Conditioning
    shares: Float64

    def __getitem__(self, rows: slice) -> Between:
        """Those of some of the images."""
        return Between(self.first[rows], self.second[rows], self.shares[rows])

    def mix(self, first: Float32, second: Float32) -> Float32:
        """Guided outputs, float32 (B, C, H, W) both; where the share is 0 the first to the bit."""
        return mixed(first, second, self.shares[:, None, None, None])


Told = Conditioning | Between


def mixed(first: Float32, second: Float32, share: float | Float64) -> Float32:
    """(1 - share) · first + share · second, in float64 and rounded once."""
    total: Float32 = ((1 - share) * first.astype(np.float64) + share * second.astype(np.float64)).astype(np.float32)
    return total
