"""What a drawing begins at: a picture, the mask of what is drawn anew, and how far both grow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from runtime.bundle import Bundle
from runtime.errors import RequestError
from runtime.extend import check_extend, check_multiples, extended
from runtime.limits import check_bool
from runtime.source_image import ImageInput, MaskInput, fit, open_image, open_mask


@dataclass(frozen=True)
class Source:
    """A picture to begin at, and what of it is drawn anew; without a picture there is none of the rest.

    Attributes:
        image: RGB.
        mask: L, of the same size: 255 is drawn anew, 0 is kept.
        extend: pixels by side that both were made larger by.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    extend: Mapping[str, int] = field(default_factory=dict)

    def fit(self, width: int, height: int) -> Source:
        """Both scaled to cover the size and cut to it from the middle."""
        image = None if self.image is None else fit(self.image, width, height)
        mask = None if self.mask is None else fit(self.mask, width, height, Image.Resampling.BILINEAR)
        return Source(image, mask, self.extend)

    def metadata(self, paste_back: bool) -> dict[str, Any]:
        """What a finished picture says of the mask that it was drawn with: nothing without one.

        ``mask_sha256`` is of the mask's pixels, 8 bits each, row by row, at the size that was drawn.

        Raises:
            RequestError: ``paste_back`` is neither true nor false.
        """
        put_back = check_bool("paste_back", paste_back)
        if self.mask is None:
            return {}
        grown = {"extend": dict(self.extend)} if self.extend else {}
        own = {"mask_sha256": hashlib.sha256(self.mask.tobytes()).hexdigest(), "paste_back": put_back}
        return own | grown


def open_source(
    image: ImageInput | None, mask: MaskInput | None = None, extend: Mapping[str, int] | None = None
) -> Source:
    """A picture to begin at, made larger where it is to grow, and its mask.

    Args:
        image: as ``open_image`` takes it.
        mask: as ``open_mask`` takes it, of the image's size.
        extend: pixels by side: "left", "top", "right", "bottom".

    Raises:
        RequestError: a picture cannot be read, the sizes differ, or a mask or an extension is of no image.
    """
    for name, value in (("mask", mask), ("extend", extend)):
        if image is None and value is not None:
            raise RequestError(f"{name} says what of an image is drawn anew, and there is no image; give one")
    if image is None:
        return Source()
    sides = {} if extend is None else check_extend(extend)
    opened, region = open_image(image), None if mask is None else open_mask(mask)
    if region is not None and region.size != opened.size:
        sizes = f"{region.width}x{region.height} pixels and the image {opened.width}x{opened.height}"
        raise RequestError(f"the mask has {sizes}; give both in one size")
    return Source(*extended(opened, region, sides), sides)


def check_source(source: Source, bundle: Bundle, sized: bool) -> None:
    """Refuse what a model of latents does not begin at.

    Args:
        source: what there is.
        bundle: the model.
        sized: whether width and height were both given.

    Raises:
        RequestError: an image and no encoder, no mask for a model that needs one, or an extended image that is no
            multiple of the latents' factor.
    """
    if source.image is not None and "vae_encoder" not in bundle.graphs:
        raise RequestError(f"{bundle.name} has no encoder of images; leave the image out")
    if source.mask is None and len(bundle.unet_input) > 1:
        names = ", ".join(name for name, _ in bundle.unet_input)
        raise RequestError(
            f"{bundle.name} fills in parts of a picture (its U-Net takes {names}) and draws no whole; "
            "give an image with a mask (--image, --mask), or with sides to extend (--extend)"
        )
    if source.image is not None and source.extend and bundle.latents is not None and not sized:
        check_multiples(*source.image.size, bundle.latents.factor)
