"""How images are made, checked and with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image

from runtime.errors import RequestError
from runtime.limits import check_share
from runtime.noise import image_seed
from runtime.plan import Plan
from runtime.variation import Variation

DEFAULT_STRENGTH = 0.8


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
    variation: Variation | None = None

    @property
    def guided(self) -> bool:
        """Whether any row leads away from the negative condition."""
        return self.guidance_scale != 1 and bool(self.plan.guidance.any())

    def seeds(self, count: int) -> tuple[int, ...]:
        """One for each image; variations share theirs."""
        return tuple(image_seed(self.seed, 0 if self.variation else k) for k in range(count))

    def varied(self, conditions: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        """Those of every image, with the seed that it varies towards where it does."""
        if self.variation is None:
            return tuple(conditions)
        return tuple({**each, **self.variation.of_image(k)} for k, each in enumerate(conditions))

    @property
    def rows(self) -> int:
        """How many a batch takes."""
        return 0 if self.untouched else len(self.plan)


@dataclass(frozen=True)
class SecondPass:
    """The picture once more, larger; made by ``runtime.second_pass``.

    Attributes:
        settings: how to sample from what the first pass made, enlarged.
        by: what is enlarged, "latents" or "pixels".
        width, height: pixels.
        shape: of one sample, (C, H, W).
    """

    settings: Settings
    by: str
    width: int
    height: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How images are made, as far as they do not differ from each other; made, and checked, by ``Pipeline.recipe``.

    Attributes:
        settings: how to sample.
        shape: of one sample, (C, H, W).
        metadata: what ``Result.metadata`` will say.
        image: to begin at, of the size that is drawn.
        mask: what of it is drawn anew, mode L; None is all.
        paste_back: whether the image's own pixels are put back where it is kept.
        second: what follows at a larger size.
    """

    settings: Settings
    shape: tuple[int, ...]
    metadata: dict[str, Any]
    image: Image | None = None
    mask: Image | None = None
    paste_back: bool = True
    second: SecondPass | None = None

    def in_batches(self, batch_size: int) -> Recipe:
        """The same with other batches, which change no picture."""
        settings, second = replace(self.settings, batch_size=batch_size), self.second
        if second is not None:
            second = replace(second, settings=replace(second.settings, batch_size=batch_size))
        return replace(self, settings=settings, second=second)

    @property
    def rows(self) -> int:
        """How many a batch takes, in both passes."""
        return self.settings.rows + (0 if self.second is None else self.second.settings.rows)

    @property
    def guided(self) -> bool:
        """Whether a row of either pass leads away from the negative condition."""
        return self.settings.guided or (self.second is not None and self.second.settings.guided)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a finished picture, in pixels; a second pass never makes it smaller than the first."""
        if self.second is not None:
            return self.second.width, self.second.height
        height, width = self.shape[-2:]  # of models of pixels, which say no size
        return self.metadata.get("width", width), self.metadata.get("height", height)

    @property
    def last_shape(self) -> tuple[int, ...]:
        """Of one finished sample, (C, H, W)."""
        return self.shape if self.second is None else self.second.shape


def with_strength(
    options: Mapping[str, Any], from_image: bool, planned: bool, masked: bool = False
) -> tuple[dict[str, Any], bool]:
    """Options of a plan with the strength filled in, and whether it is 0, so that the image stays as it is.

    Args:
        options: as they were given; a strength of None is none.
        from_image: whether there is an image to begin at.
        planned: whether a plan was given, which has a strength of its own.
        masked: whether a part of the image is drawn anew, and nothing of what is there need remain.

    Raises:
        RequestError: the strength is no share, or there is no image that it could be of.
    """
    rest = {name: value for name, value in options.items() if name != "strength"}
    strength = options.get("strength")
    if not from_image:
        if strength not in (None, 1):
            raise RequestError(f"strength {strength} says how much of an image changes; give one, or leave it out")
        return rest, False
    if planned:
        return rest if strength is None else {**options}, False
    usual = 1 if masked else DEFAULT_STRENGTH
    strength = usual if strength is None else check_share("strength", strength)
    return (rest, True) if strength == 0 else (rest | {"strength": strength}, False)
