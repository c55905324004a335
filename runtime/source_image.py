"""Pictures from files, to begin at, and their masks: read with suspicion, fitted to a size, and turned into the
network's numbers."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from runtime.errors import RequestError, one_line
from runtime.image import UInt8

Float32 = npt.NDArray[np.float32]
ImageInput = str | os.PathLike[str] | Image.Image | UInt8
MaskInput = ImageInput | npt.NDArray[np.bool_]

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 2**26  # a photograph of 64 megapixels; a file of a kilobyte can claim far more


def open_image(image: MaskInput, name: str = "image") -> Image.Image:
    """A picture, decoded, upright, on white where it was transparent: mode RGB.

    Args:
        image: a file, a Pillow image, or an array uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: the argument that it is, for messages.

    Raises:
        RequestError: no picture, one that is too large, or an array of another kind.
    """
    if isinstance(image, Image.Image):
        return decoded(image, "the picture")
    if isinstance(image, np.ndarray):
        return decoded(from_array(image, name), "the picture")
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    raise RequestError(f"{name} is {type(image).__name__}; it must be a file, a Pillow image or an array of uint8")


def open_mask(mask: MaskInput) -> Image.Image:
    """A mask, mode L: white, or transparent, is drawn anew, black is kept.

    Args:
        mask: as ``open_image`` takes it, or an array of bool (H, W), in which True is drawn anew.

    Raises:
        RequestError: no picture, one that is too large, an array of another kind, or one of zeros and ones in uint8.
    """
    if isinstance(mask, np.ndarray):
        if mask.dtype == np.bool_:
            mask = mask.astype(np.uint8) * np.uint8(255)
        elif mask.dtype == np.uint8 and mask.size and mask.max() == 1:  # which would be read as black
            raise RequestError("mask is an array of at most 1, and white is 255; multiply it, or give an array of bool")
    return open_image(mask, "mask").convert("L")


def read_image(path: Path) -> Image.Image:
    """Read a file; its size is looked at before anything of it is decoded."""
    with opened(path) as image:
        return decoded(image, str(path))


@contextlib.contextmanager
def opened(path: Path, formats: tuple[str, ...] = READABLE) -> Iterator[Image.Image]:
    """A picture in a file, of which nothing has been decoded but what it says of itself.

    Raises:
        RequestError: no file, none of these formats, or one that is, or claims to be, too large.
    """
    with reading(str(path)):
        if not path.is_file():  # a pipe would be waited for
            raise RequestError(f"the picture {path} does not exist" if not path.exists() else f"{path} is no file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(f"{path} has {size} bytes; a picture has at most {MAX_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``check_claim`` is stricter
            image = Image.open(path, formats=formats)
    with image:
        check_claim(image, str(path))
        yield image


def decoded(image: Image.Image, name: str) -> Image.Image:
    """The pixels of an image that may not have been decoded yet, as ``to_rgb`` gives them."""
    check_claim(image, name)
    with reading(name):
        return to_rgb(image)


def check_claim(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise RequestError(f"{name} claims {image.width}x{image.height} pixels; a picture has at most {MAX_PIXELS}")


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever Pillow raises for a broken file, which is of a dozen kinds, as a RequestError."""
    try:
        yield
    except (RequestError, MemoryError):
        raise
    except Exception as error:
        why = one_line(error) or type(error).__name__
        raise RequestError(f"{name} cannot be read as a picture ({why}); give one of {', '.join(READABLE)}") from error


def from_array(array: npt.NDArray[Any], name: str = "image") -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise RequestError(
            f"{name} is an array {array.dtype} {array.shape}; it must be uint8 (H, W) or (H, W, C) with C 1, 3 or 4"
        )
    return Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else np.ascontiguousarray(array))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turned as its camera says, and laid on white, which is what transparent pictures are mostly seen on."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise RequestError(f"a picture of mode {upright.mode} has no range that is known; convert it to L or RGB")
    if upright.mode.startswith("I;16"):  # which Pillow would cut off at 255 instead of scaling
        upright = Image.fromarray((np.asarray(upright) // 257).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def fit(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scaled to cover the size and cut to it from the middle; a picture that has it stays as it is."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), resampling)


def to_sample(image: Image.Image, channels: int) -> Float32:
    """A network's numbers of it: float32 (C, H, W) in [-1, 1], C being 1 or 3."""
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / np.float32(127.5) - 1)
