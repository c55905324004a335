"""Averages of weights over the steps of a run: they draw better than the weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def ema_update(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average whose decay grows from 0.1, so that the random start is forgotten in a short run."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        seen = float(num_averaged)
        weight = 1 - min(decay, (1 + seen) / (10 + seen))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average), weight)
            else:  # batch normalisation's count of batches
                average.copy_(value)

    return update
