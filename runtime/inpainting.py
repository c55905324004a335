"""Drawing a part of a picture anew and keeping the rest (``docs/bundle.md``, section "Inpainting").

Shapes: B images, C H W one sample (of latents or of pixels), N rows of the plan.

A network that is told of the sample alone is led by its surroundings: after every row what is kept is put back, with as
much noise as x has there, as Lugmayr et al. 2022 ("RePaint", eq. 8, without their resampling) and diffusers do. A grey
value lets go of its place later than white, so that it changes as by a smaller strength (Levin & Fried 2023,
"Differential Diffusion"). A network that was trained to fill in is told of the mask and of the picture without what is
under it, and nothing is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from runtime.bundle import Bundle
from runtime.image import UInt8
from runtime.plan import Plan
from runtime.recipe import Recipe
from runtime.source_image import to_sample

Float32 = npt.NDArray[np.float32]
Encode = Callable[[Float32], Float32]

WHITE = 255
HALF = 128


@dataclass(frozen=True)
class Region:
    """What of a sample is drawn anew.

    Attributes:
        mask: uint8 (H, W) at the sample's resolution: 255 is drawn anew, 0 is kept. None: all is drawn, as ever.
        told: what the network takes, in order: None for the sample, and float32 (channels, H, W) for what does not
            change, the mask and the masked sample.
    """

    mask: UInt8 | None = None
    told: Sequence[Float32 | None] = (None,)

    def begins_at_noise(self, plan: Plan) -> bool:
        """Whether the loop begins at noise alone, though there is a picture: with strength 1, as in diffusers."""
        return self.mask is not None and plan.options.get("strength", 1) == 1

    def network_input(self, sample: Float32) -> Float32:
        """x with what else the network takes, float32 (B, channels, H, W)."""
        if len(self.told) == 1:
            return sample
        parts = [sample if each is None else np.broadcast_to(each, (len(sample), *each.shape)) for each in self.told]
        return np.concatenate(parts, axis=1)

    def with_kept(
        self, sample: Float32, plan: Plan, row: int, noise: Float32, original_sample: Float32 | None
    ) -> Float32:
        """x after a row, float32 (B, C, H, W), with what is kept as the original has it.

        Args:
            sample: x_{row + 1} as the row makes it.
            plan: whose row it is.
            row: from 0.
            noise: draw 0 of each image, (B, C, H, W).
            original_sample: of the picture, (C, H, W). After the last row it is put back as it is, without noise, even
                where the plan ends with some.
        """
        if self.mask is None or original_sample is None or len(self.told) > 1:
            return sample
        kept = original_sample.astype(np.float64)
        if row + 1 < len(plan):
            signal_scale, noise_scale = float(plan.signal_scales[row + 1]), float(plan.noise_scales[row + 1])
            kept = signal_scale * kept + noise_scale * noise.astype(np.float64)
        held = free_rows(self.mask, len(plan)) + row + 1 <= len(plan)
        return np.where(held, kept.astype(np.float32), sample)


EVERYWHERE = Region()


def free_rows(mask: UInt8, rows: int) -> npt.NDArray[np.int64]:
    """How many rows of so many draw each place: the last ⌊rows · mask / 255⌋, int64 (H, W)."""
    return mask.astype(np.int64) * rows // WHITE


def mask_of(recipe: Recipe, bundle: Bundle) -> UInt8 | None:
    """A recipe's mask (H, W) as its model reads it: a network that is told of masks knows no grey, and rounds."""
    if recipe.mask is None:
        return None
    mask = np.asarray(recipe.mask)
    return mask if len(bundle.unet_input) == 1 else np.where(mask >= HALF, np.uint8(WHITE), np.uint8(0))


def region_of(recipe: Recipe, bundle: Bundle, encode: Encode) -> Region:
    """What of the latents is drawn anew.

    A mask goes to the latents' resolution by the upper left pixel of each latent's, which is nearest-neighbour
    interpolation as PyTorch, and so diffusers, has it. The masked sample is encoded from the picture with 0, middle
    grey, where it is drawn anew.

    Args:
        recipe: of the images.
        bundle: the model, of latents.
        encode: an image float32 (3, H, W) in [-1, 1] to its latents.

    Raises:
        RequestError: the encoder's numbers are not finite.
    """
    mask = mask_of(recipe, bundle)
    if mask is None or recipe.image is None or bundle.latents is None:
        return EVERYWHERE
    small = np.ascontiguousarray(mask[:: bundle.latents.factor, :: bundle.latents.factor])
    if len(bundle.unet_input) == 1 or recipe.settings.untouched:
        return Region(small)
    masked = encode(np.where(mask == WHITE, np.float32(0), to_sample(recipe.image, 3)))
    further = {"mask": (small == WHITE).astype(np.float32)[None], "masked_sample": masked}
    return Region(small, tuple(further.get(name) for name, _ in bundle.unet_input))


def original_of(recipe: Recipe, region: Region, encode: Encode) -> Float32 | None:
    """The latents of the image to begin at, float32 (C, h, w); None where nothing of them would come to count.

    Raises:
        RequestError: the encoder's numbers are not finite.
    """
    of_no_use = len(region.told) > 1 and region.begins_at_noise(recipe.settings.plan)
    return None if recipe.image is None or of_no_use else encode(to_sample(recipe.image, 3))


def with_own_pixels(images: UInt8, recipe: Recipe, bundle: Bundle) -> UInt8:
    """Decoded images, uint8 (B, H, W, 3), with the picture's own pixels put back if the recipe says so."""
    mask = mask_of(recipe, bundle)
    if mask is None or recipe.image is None or bundle.latents is None or not recipe.paste_back:
        return images
    return pasted_back(images, recipe.image, free_rows(mask, recipe.rows) > 0, bundle.latents.factor)


def pasted_back(images: UInt8, image: Image.Image, drawn: npt.NDArray[np.bool_], factor: int) -> UInt8:
    """Finished images with the picture's own pixels where it is kept, uint8 (B, H, W, 3).

    What is kept comes out of the VAE without its finest detail. So the picture is laid over it: whole where nothing
    drawn is within ``factor`` pixels, and fading from there, so that no seam is seen. What is drawn stays as it is.

    Args:
        images: uint8 (B, H, W, 3).
        image: RGB.
        drawn: what is drawn anew, be it in some rows only, (H, W).
        factor: pixels per latent.
    """
    reach = factor // 2
    share = Image.fromarray(drawn.astype(np.uint8) * np.uint8(WHITE))
    # The largest of a square and then its mean fall from white to black outside what was white, and nowhere inside.
    soft = np.asarray(share.filter(ImageFilter.MaxFilter(2 * reach + 1)).filter(ImageFilter.BoxBlur(reach)), np.int64)
    soft = soft[None, ..., None]
    mixed = soft * images + (WHITE - soft) * np.asarray(image, np.int64)
    return ((mixed + WHITE // 2) // WHITE).astype(np.uint8)
