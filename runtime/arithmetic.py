"""The arithmetic of one row of a plan, as ``docs/bundle.md`` has it to the last rounding: in float64, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.plan import Float64, Plan

Float32 = npt.NDArray[np.float32]


def first_sample(plan: Plan, noise: Float32, original_sample: Float32 | None) -> Float32:
    """x_0 of a batch, float32 (B, C, H, W), from its noise and what it begins at.

    Args:
        plan: says how much there is of each.
        noise: draw 0 of every image, float32 (B, C, H, W).
        original_sample: (C, H, W) for all images, (B, C, H, W) for each its own, or None.
    """
    drawn = noise.astype(np.float64)
    if original_sample is None:
        return (plan.initial_scale * drawn).astype(np.float32)
    signal_scale, noise_scale = float(plan.signal_scales[0]), float(plan.noise_scales[0])
    started: Float32 = (signal_scale * original_sample.astype(np.float64) + noise_scale * drawn).astype(np.float32)
    return started


def combine(weights: Float64, terms: Sequence[Float32 | None]) -> Float32:
    """The weighted sum of a row: left to right; terms of weight zero do not count.

    Raises:
        RequestError: a term that counts does not exist yet.
    """
    total: Float64 | float = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # the loop refuses what is not finite
        for weight, term in zip(weights, terms, strict=True):
            if weight != 0:
                if term is None:
                    raise RequestError(
                        "the plan looks back further than its first row; it was not made by this program"
                    )
                total = total + float(weight) * term.astype(np.float64)
        return np.asarray(total).astype(np.float32)


def guided(uncond: Float32, cond: Float32, scale: float, rescale: float) -> Float32:
    """The output led away from ``uncond``, float32 (B, C, H, W) (Ho & Salimans 2022, eq. 6, with s = w + 1).

    With ``rescale`` φ > 0 it is mixed with itself at the standard deviation that ``cond`` has over channels and pixels
    of an image (Lin et al. 2024, section 3.4, eqs. 15 and 16).
    """
    u, c = uncond.astype(np.float64), cond.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the loop refuses what is not finite
        output = u + scale * (c - u)
        if rescale:
            axes = tuple(range(1, output.ndim))
            ratio = c.std(axis=axes, keepdims=True) / output.std(axis=axes, keepdims=True)
            output = rescale * (output * ratio) + (1 - rescale) * output
        rounded: Float32 = output.astype(np.float32)
    return rounded


def clip_original(x0_weights: Float64, sample: Float32, output: Float32, bound: float) -> tuple[Float32, Float32]:
    """Clip the predicted original sample, and change the output so that it predicts the clipped one.

    Args:
        x0_weights: p and q of x_0 = p·x + q·o, (2,).
        sample, output: x and o.
        bound: x_0 is kept within ± this.

    Returns:
        The output, changed only where something was clipped, and the clipped x_0.
    """
    x_weight, output_weight = map(float, x0_weights)
    scaled = x_weight * sample.astype(np.float64)
    original = scaled + output_weight * output.astype(np.float64)
    clipped = np.clip(original, -bound, bound)
    consistent = ((clipped - scaled) / output_weight).astype(np.float32)
    return np.where(clipped == original, output, consistent), clipped.astype(np.float32)
