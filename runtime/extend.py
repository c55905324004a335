"""A picture that is to grow on some of its sides: outpainting."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from runtime.errors import RequestError
from runtime.limits import check_whole
from runtime.source_image import MAX_PIXELS

SIDES = ("left", "top", "right", "bottom")
MAX_EXTENSION = 2**14
DRAWN_ANEW = 255


def parse_extend(text: str) -> dict[str, int]:
    """Sides and pixels from a command line, such as ``left=64,bottom=128``.

    Raises:
        RequestError: it cannot be read, or names a side twice.
    """
    pairs = re.findall(rf"({'|'.join(SIDES)})=([0-9]{{1,9}})(?:,|$)", text)
    read = ",".join(f"{side}={value}" for side, value in pairs)
    if not pairs or text != read or len(dict(pairs)) < len(pairs):
        raise RequestError(f"extend {text!r} must be sides with pixels, each once, such as left=64,bottom=128")
    return {side: int(value) for side, value in pairs}


def check_extend(extend: object) -> dict[str, int]:
    """Pixels by side, in the order of ``SIDES`` and without those that do not grow.

    Raises:
        RequestError: no mapping, an unknown side, or pixels that are no whole number from 0 to 16,384, or all 0.
    """
    if not isinstance(extend, Mapping):
        raise RequestError(f"extend is {extend!r}; it must be pixels by side, such as {{'left': 64, 'bottom': 128}}")
    for side, value in extend.items():
        if side not in SIDES:
            raise RequestError(f"extend has a side {side!r}; there are {', '.join(SIDES)}")
        check_whole(f"extend {side}", value, least=0, most=MAX_EXTENSION)
    if not any(extend.values()):
        raise RequestError("extend adds nothing on any side; leave it out")
    return {side: int(extend[side]) for side in SIDES if extend.get(side)}


def extended(
    image: Image.Image, mask: Image.Image | None, extend: Mapping[str, int]
) -> tuple[Image.Image, Image.Image | None]:
    """A picture RGB and its mask L, made larger; what is new is drawn anew.

    The new pixels continue those of the edge. Nothing of them is seen, but the VAE's encoder looks a little beyond the
    edge, and finds there no other edge; and with a strength below 1 they are what the drawing begins at.

    Args:
        image: RGB.
        mask: L, of the same size; None is nothing of the old picture.
        extend: as ``check_extend`` gives it; of nothing both are returned as they are.

    Raises:
        RequestError: the result would have too many pixels.
    """
    if not extend:
        return image, mask
    left, top, right, bottom = (extend.get(side, 0) for side in SIDES)
    width, height = image.width + left + right, image.height + top + bottom
    if width * height > MAX_PIXELS:
        raise RequestError(f"extended, the picture has {width}x{height} pixels; at most {MAX_PIXELS} are drawn from")
    grown = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    old = Image.new("L", image.size, 0) if mask is None else mask
    return Image.fromarray(grown), ImageOps.expand(old, (left, top, right, bottom), DRAWN_ANEW)


def check_multiples(width: int, height: int, factor: int) -> None:
    """Refuse an extended picture that the model cannot draw as it is, which cutting would make smaller again.

    Raises:
        RequestError: with the pixels that are missing.
    """
    missing = {"left or right": -width % factor, "top or bottom": -height % factor}
    if any(missing.values()):
        more = " and ".join(f"{count} to {sides}" for sides, count in missing.items() if count)
        raise RequestError(
            f"extended, the picture has {width}x{height} pixels, and multiples of {factor} are drawn; "
            f"add {more}, or say the size that it is scaled and cut to"
        )
