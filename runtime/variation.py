"""Noise between that of two seeds: variations of a picture, and frames that lead from one picture to another.

The interpolation is that of the Stable Diffusion web UIs, so that seed, variation seed and strength from there begin
here with the same noise. It is spherical (Shoemake 1985, "Animating rotation with quaternion curves", section 3.3),
since the sum of independent normal numbers with weights 1 - s and s would have a smaller variance than either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import RequestError
from runtime.limits import check_share
from runtime.noise import Float32, NoiseGenerator, image_seed, noise_generator

NEARLY_PARALLEL = 0.9995  # a cosine beyond which sines of the angle are no longer divided by


@dataclass(frozen=True)
class Variation:
    """Another seed that a request's pictures begin near to.

    Attributes:
        seed: of the first image; the next has the next, while their own seed stays.
        strength: from 0, all of their own noise, to 1, all of the other.
    """

    seed: int
    strength: float

    def of_image(self, k: int) -> dict[str, Any]:
        """What it adds to the conditions of image k."""
        return {"variation_seed": image_seed(self.seed, k), "variation_strength": self.strength}


@dataclass(frozen=True)
class Blend:
    """The noise of one image, between those of two.

    Attributes:
        first, second: a seed each, or noise that lies between two itself.
        share: of the second, from 0 to 1.
        every_draw: whether all draws lie between the two; otherwise draw 0 does, and later ones are the first's.
    """

    first: Noise
    second: Noise
    share: float
    every_draw: bool = False


Noise = int | Blend


def variation_of(seed: int | None, strength: float | None) -> Variation | None:
    """The variation that two arguments of a call ask for; None for no strength, or 0.

    Raises:
        RequestError: one is out of range, or there is one without the other.
    """
    if strength is None:
        if seed is not None:
            raise RequestError(f"variation_seed {seed} does nothing by itself; give a variation_strength from 0 to 1")
        return None
    check_share("variation_strength", strength)
    if seed is None:
        if strength:
            raise RequestError(f"variation_strength {strength:g} leads towards another seed; give a variation_seed")
        return None
    first = image_seed(seed, 0, "variation_seed")
    return Variation(first, strength) if strength else None


def noise_of(seed: int, condition: Mapping[str, Any]) -> Noise:
    """The noise of an image, from its seed and what its conditions say of others: a variation, or a frame's goal."""

    def own(seed: int) -> Noise:
        if "variation_seed" not in condition:
            return seed
        return Blend(seed, condition["variation_seed"], condition["variation_strength"])

    if "to_seed" not in condition:
        return own(seed)
    return Blend(own(seed), own(condition["to_seed"]), condition["share"], every_draw=True)


def generator_of(rng: str, noise: Noise) -> NoiseGenerator:
    """A generator before its draw 0; ``rng`` is a key of ``GENERATORS``.

    Raises:
        RequestError: the name is unknown, or a seed out of range.
    """
    return BlendedGenerator(rng, noise) if isinstance(noise, Blend) else noise_generator(rng, noise)


class BlendedGenerator:
    """Noise between two generators."""

    def __init__(self, rng: str, blend: Blend) -> None:
        self._blend, self._blending = blend, True
        self._first, self._second = generator_of(rng, blend.first), generator_of(rng, blend.second)

    def draw(self, shape: tuple[int, ...]) -> Float32:
        """The next draw of the first, and where they are blended of the second."""
        first = self._first.draw(shape)
        if not self._blending:
            return first
        self._blending = self._blend.every_draw
        return slerp(first, self._second.draw(shape), self._blend.share)


def slerp(first: Float32, second: Float32, share: float) -> Float32:
    """Noise between two, float32 (C, H, W): at share 0 the first, at 1 the second, to the bit.

    The vectors are columns, H numbers each, as in the web UIs. With ω the angle between a column of the first and that
    of the second::

        sin((1 - share) · ω) / sin ω · first + sin(share · ω) / sin ω · second

    in float64 and rounded once. Columns that are nearly parallel or opposite are interpolated linearly.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=-2, keepdims=True) * np.linalg.norm(b, axis=-2, keepdims=True)
    cosine = (a * b).sum(axis=-2, keepdims=True) / np.where(norms == 0, 1, norms)
    linear = np.abs(cosine) > NEARLY_PARALLEL
    omega = np.arccos(np.where(linear, 0, cosine))
    weight = np.where(linear, 1 - share, np.sin((1 - share) * omega) / np.sin(omega))
    other = np.where(linear, share, np.sin(share * omega) / np.sin(omega))
    between: Float32 = (weight * a + other * b).astype(np.float32)
    return between
