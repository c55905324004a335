"""From class labels to images of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from runtime.bundle import Bundle, ClassConditioning, Pixels
from runtime.conditioning import Between, Conditioning, Told
from runtime.errors import RequestError
from runtime.image import UInt8, to_uint8
from runtime.inpainting import EVERYWHERE, Region
from runtime.limits import MAX_IMAGES, check_whole
from runtime.networks import Networks
from runtime.pipeline import Float32, Pipeline, Request
from runtime.recipe import Recipe
from runtime.result import Result
from runtime.second_pass import take_upscale
from runtime.source import open_source
from runtime.source_image import ImageInput, MaskInput, to_sample
from runtime.steps import Progress, Rows
from runtime.variation import noise_of

Int64 = npt.NDArray[np.int64]

DEFAULT_BATCH_SIZE = 32


class ClassToImage(Pipeline):
    """A bundle that draws classes."""

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        provider_reason: str,
        conditioning: ClassConditioning,
        pixels: Pixels,
    ) -> None:
        super().__init__(bundle, networks, provider_reason)
        self.conditioning, self.pixels = conditioning, pixels
        self.shape = (pixels.channels, pixels.height, pixels.width)

    def request(
        self,
        class_labels: int | Sequence[int],
        *,
        width: int | None = None,
        height: int | None = None,
        image: ImageInput | None = None,
        mask: MaskInput | None = None,
        **settings: Any,
    ) -> Request:
        """One image for each label.

        Args:
            class_labels: 0 .. num_classes - 1, or num_classes for no class.
            width, height: pixels; a model of pixels has but one size.
            image: to begin at instead of noise alone, see ``open_image``; ``strength`` in ``settings`` says how much
                of it changes, from 0 to 1 (default 0.8).
            mask: what of the image is drawn anew, see ``open_mask``: white, and the rest is kept to the last level;
                ``strength`` is 1 unless it is given.
            settings: extend, as ``recipe`` takes it; sampler, num_inference_steps, guidance_scale, seed, rng,
                batch_size (default 32), variation_seed, variation_strength and plan, as ``Pipeline.settings`` takes
                them, and options of the sampler.

        Raises:
            RequestError: an argument is out of range; nothing has been computed then.
        """
        labels = self.conditions(class_labels)
        recipe = self.recipe(width=width, height=height, image=image, mask=mask, **settings)
        conditions = recipe.settings.varied(labels)
        return recipe, conditions, recipe.settings.seeds(len(conditions))

    def recipe(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        image: ImageInput | None = None,
        mask: MaskInput | None = None,
        extend: Mapping[str, int] | None = None,
        paste_back: bool = True,
        **settings: Any,
    ) -> Recipe:
        """How images are made; the arguments are those of a call.

        Args:
            width, height, image, mask, settings: as a call takes them.
            extend: pixels by which the image grows, by side ("left", "top", "right", "bottom"), before it is scaled to
                the model's size. They are drawn anew.
            paste_back: nothing here, where what is kept loses nothing.
        """
        upscale, settings = take_upscale(settings)
        if upscale is not None:
            raise RequestError(f"{self.bundle.name} draws pixels of one size; leave out upscale {upscale.factor:g}")
        source = open_source(image, mask, extend)
        size = self.check_size(width, height, source.image)
        begun, masked = source.image is not None, source.mask is not None
        chosen = self.settings(DEFAULT_BATCH_SIZE, from_image=begun, masked=masked, **settings)
        begin = source.fit(*size)
        metadata = self.metadata(chosen, begin.image) | begin.metadata(paste_back)
        return Recipe(chosen, self.shape, metadata, begin.image, begin.mask, paste_back)

    def drawn(
        self,
        recipe: Recipe,
        conditions: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Rows[Result]:
        """Draw an image for each label and seed, (B,) both."""
        original = None if recipe.image is None else to_sample(recipe.image, self.pixels.channels)
        region = EVERYWHERE if recipe.mask is None else Region(np.asarray(recipe.mask))
        noises = [noise_of(seed, each) for seed, each in zip(seeds, conditions, strict=True)]
        told = self.told(conditions)
        sample = yield from self.sample(told, recipe.settings, noises, recipe.shape, progress, original, region)
        return Result(to_uint8(sample), sample, tuple(seeds), tuple(conditions), recipe.metadata)

    def preview(self, pred_original_sample: Float32) -> UInt8:
        """A sample's pixels (B, C, H, W) as images uint8 (B, H, W, C)."""
        return to_uint8(pred_original_sample)

    def roles(self, recipe: Recipe) -> list[str]:
        """The one network, unless a picture stays as it is."""
        return ["unet"] * (recipe.rows > 0)

    def told(self, conditions: Sequence[Mapping[str, Any]]) -> Told:
        """What the U-Net is told of images' labels, some of which may be on their way to another."""
        labels = [each["class_label"] for each in conditions]
        first = self.encode(np.array(labels, np.int64))
        if not any("to_class_label" in each for each in conditions):
            return first
        goals = [each.get("to_class_label", each["class_label"]) for each in conditions]
        shares = np.array([each["share"] if "to_class_label" in each else 0.0 for each in conditions])
        return Between(first, self.encode(np.array(goals, np.int64)), shares)

    def encode(self, class_labels: Int64) -> Conditioning:
        """What the U-Net is told of labels, int64 (B,)."""
        null = np.full_like(class_labels, self.conditioning.null_class)
        return Conditioning({"class_labels": class_labels}, {"class_labels": null})

    def conditions(self, class_labels: int | Sequence[int]) -> tuple[dict[str, int], ...]:
        """The label of every image.

        Raises:
            RequestError: there is none, or one that the model does not have.
        """
        try:
            labels = np.atleast_1d(np.asarray(class_labels))
        except ValueError:  # numbers beside lists of them
            labels = np.asarray(class_labels, object)
        if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
            raise RequestError(f"class_labels {class_labels!r} must be a whole number or a list of them")
        if not len(labels):
            raise RequestError("there is no label to draw; give at least one")
        check_whole("the number of images", len(labels), least=1, most=MAX_IMAGES)
        wrong = labels[(labels < 0) | (labels > self.conditioning.null_class)]
        if len(wrong):
            raise RequestError(
                f"label {wrong[0]} is out of range; {self.bundle.name} has 0 to {self.conditioning.num_classes - 1}, "
                f"and {self.conditioning.null_class} for none"
            )
        return tuple({"class_label": int(label)} for label in labels)

    def check_size(self, width: int | None, height: int | None, image: Image | None = None) -> tuple[int, int]:
        own = (self.pixels.width, self.pixels.height)
        asked = (own[0] if width is None else width, own[1] if height is None else height)
        if asked != own:
            raise RequestError(f"{self.bundle.name} draws {own[0]}x{own[1]} pixels only, not {asked[0]}x{asked[1]}")
        return own
