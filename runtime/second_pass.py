"""A second pass at a larger size: the web UIs' "hires fix".

A network draws best at the size that it was trained at; much beyond it, it repeats what is in the picture. So the
picture is drawn small, enlarged, and drawn once more as one that begins at a picture: same prompts, sampler and
guidance, and the draws that an image to image of that size takes, from draw 0 on.

Latents are enlarged by bilinear interpolation, as by ``torch.nn.functional.interpolate`` without ``align_corners`` and
``antialias``; pixels, rounded to 8 bits, by Pillow's Lanczos filter. Enlarged latents are no latents of any sharp
picture, so that they need more strength; pixels are decoded and encoded in between, which takes time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.errors import RequestError
from runtime.image import UInt8
from runtime.limits import check_choice, check_share, check_whole, is_finite_number
from runtime.recipe import SecondPass, Settings
from runtime.source_image import to_sample

if TYPE_CHECKING:
    from runtime.text_to_image import TextToImage

Float32 = npt.NDArray[np.float32]

LATENTS, PIXELS = "latents", "pixels"
UPSCALE_BY = (LATENTS, PIXELS)
UPSCALE_STRENGTH = 0.7  # what the web UIs begin with
MAX_UPSCALE = 4
OPTIONS = ("upscale", "upscale_by", "upscale_strength", "upscale_steps")
# What the first pass is told of noise and beginning, and the second has its own.
OF_FIRST_PASS = ("strength", "num_inference_steps", "seed", "batch_size", "variation_seed", "variation_strength")


@dataclass(frozen=True)
class Upscale:
    """What a request says of a second pass.

    Attributes:
        factor: how much wider and higher.
        by: "latents" or "pixels".
        strength: how much of the enlarged picture changes.
        steps: of which the second pass takes that share; None for as many as the first pass has.
    """

    factor: float
    by: str
    strength: float
    steps: int | None


def take_upscale(settings: Mapping[str, Any]) -> tuple[Upscale | None, dict[str, Any]]:
    """What settings of a call say of a second pass, if they ask for one, and the rest of them.

    Raises:
        RequestError: a value is out of range, or says how to do what is not asked for.
    """
    rest = {name: value for name, value in settings.items() if name not in OPTIONS}
    given = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
    if "upscale" not in given:
        if given:
            name, value = next(iter(given.items()))
            raise RequestError(f"{name} {value} is of a second pass; give upscale, such as 2, or leave it out")
        return None, rest
    by, steps = given.get("upscale_by", LATENTS), given.get("upscale_steps")
    check_choice("upscale_by", by, UPSCALE_BY)
    strength = check_share("upscale_strength", given.get("upscale_strength", UPSCALE_STRENGTH))
    if steps is not None:
        check_whole("upscale_steps", steps, least=1)
    return Upscale(check_upscale(given["upscale"]), by, strength, steps), rest


def check_upscale(factor: float) -> float:
    """The factor, if it is one to enlarge by; else raises RequestError."""
    if not is_finite_number(factor) or not 1 <= factor <= MAX_UPSCALE:
        raise RequestError(f"upscale is {factor!r}; it must be a number from 1 to {MAX_UPSCALE}")
    return factor


def enlarged_size(width: int, height: int, upscale: float, factor: int) -> tuple[int, int]:
    """A size in pixels after a second pass, cut to multiples of the latents' factor.

    Raises:
        RequestError: the factor to enlarge by is out of range.
    """
    check_upscale(upscale)

    def enlarged(side: int) -> int:
        return math.floor(side * upscale + 1e-6) // factor * factor  # 0.29 · 100 is 28.999999999999996

    return enlarged(width), enlarged(height)


def second_pass(
    pipeline: TextToImage, upscale: Upscale, width: int, height: int, first: Settings, given: Mapping[str, Any]
) -> SecondPass:
    """What follows a first pass.

    Args:
        pipeline: the model.
        upscale: what is asked for.
        width, height: of the first pass, in pixels.
        first: how it samples.
        given: what the request said of that: arguments of ``Pipeline.settings``.

    Raises:
        RequestError: the size is too large, no step is left, or the model cannot do it.
    """
    if given.get("plan") is not None:
        raise RequestError("a plan says nothing of a second pass; give sampler and options instead, or no upscale")
    if upscale.by == PIXELS and "vae_encoder" not in pipeline.bundle.graphs:
        raise RequestError(f"{pipeline.bundle.name} has no encoder of images; give upscale_by={LATENTS!r}")
    size = enlarged_size(width, height, upscale.factor, pipeline.latents.factor)
    alike = {name: value for name, value in given.items() if name not in OF_FIRST_PASS}
    own: dict[str, Any] = {
        "num_inference_steps": upscale.steps or first.plan.num_inference_steps,
        "strength": upscale.strength,
    }
    try:
        pipeline.check_size(*size)
        settings = pipeline.settings(first.batch_size, from_image=True, seed=first.seed, **alike, **own)
    except RequestError as error:
        raise RequestError(f"the second pass, {size[0]}x{size[1]}: {error}") from error
    return SecondPass(settings, upscale.by, *size, pipeline.latent_shape(*size))


def described(upscale: Upscale, second: SecondPass) -> dict[str, Any]:
    """What a picture's metadata says of it, by the names of a call's arguments."""
    steps = second.settings.plan.num_inference_steps
    return dict(zip(OPTIONS, (upscale.factor, upscale.by, upscale.strength, steps), strict=True))


def enlarge(
    latents: Float32,
    second: SecondPass,
    decode: Callable[[Float32], UInt8],
    encode: Callable[[Float32], Float32],
) -> Float32:
    """What the second pass begins at, float32 (B, C, h', w'), from what the first made, float32 (B, C, h, w).

    Args:
        latents: of the first pass.
        second: the pass to come.
        decode: from latents to images uint8 (B, H, W, 3).
        encode: from an image float32 (3, H', W') in [-1, 1] to latents (C, h', w').
    """
    if second.by == LATENTS:
        return bilinear(latents, *second.shape[1:])
    images = (Image.fromarray(pixels) for pixels in decode(latents))
    size = (second.width, second.height)
    return np.stack([encode(to_sample(each.resize(size, Image.Resampling.LANCZOS), 3)) for each in images])


def bilinear(latents: Float32, height: int, width: int) -> Float32:
    """Latents float32 (B, C, h, w) at another size, float32 (B, C, height, width); in float64 and rounded once.

    Of n numbers along a side, the one at place i of m lies at (i + 1/2) · n / m - 1/2 of the old ones, and beyond the
    outermost it is the outermost.
    """
    rows, columns = weights(latents.shape[2], height), weights(latents.shape[3], width)
    larger: Float32 = (rows @ latents.astype(np.float64) @ columns.T).astype(np.float32)
    return larger


def weights(old: int, new: int) -> npt.NDArray[np.float64]:
    """How much each old number of a side counts in each new one, float64 (new, old); rows add up to one."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(places.astype(np.int64), old - 1)
    shares = places - low
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] = 1 - shares
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += shares
    return matrix
