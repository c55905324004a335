"""How images are made, checked and with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from runtime.noise import image_seed
from runtime.plan import Plan


@dataclass(frozen=True)
class Settings:
    """How to sample, every default filled in; made by ``Pipeline.settings``."""

    plan: Plan
    guidance_scale: float
    seed: int
    rng: str
    batch_size: int
    plan_sha256: str | None  # of a plan that was given
    untouched: bool = False  # strength 0: the image to begin at stays as it is, and the plan is not walked

    def seeds(self, count: int) -> tuple[int, ...]:
        """One for each image."""
        return tuple(image_seed(self.seed, k) for k in range(count))


@dataclass(frozen=True)
class Recipe:
    """How images are made, as far as they do not differ from each other; made, and checked, by ``Pipeline.recipe``.

    Attributes:
        settings: how to sample.
        shape: of one sample, (C, H, W).
        metadata: what ``Result.metadata`` will say.
        image: to begin at, of the size that is drawn.
    """

    settings: Settings
    shape: tuple[int, ...]
    metadata: dict[str, Any]
    image: Image | None = None

    @property
    def rows(self) -> int:
        """How many a batch takes."""
        return 0 if self.settings.untouched else len(self.settings.plan)
