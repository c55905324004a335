"""Between latents and pixels, one image at a time, and in overlapping tiles where the whole would not fit.

Shapes: C latent channels, h w latents, H = factor · h and W = factor · w pixels.

A decoder's memory grows with the image, and nothing but its attention and its normalisation looks further than a few
latents. So an image can be decoded in tiles. Two things keep the seams out of sight: a tile's outermost latents, which
see the edge's zero padding in place of their neighbours, weigh next to nothing; and where tiles overlap, one fades into
the other smoothly.

What tiles cannot give is the statistics of the whole image: the group normalisations and the attention in the middle
see one tile only. That error is spread over the tile and has no edge, and it grows quickly as tiles shrink. So tiles
are as large as they may be and overlap by more where the size allows it. Measured on the full-size decoder with random
weights, 64 x 64 latents of a 1/f spectrum, pixels with a standard deviation of 0.5, root mean square of the error:
0.025 in the middle of a tile of 48 x 64 latents, 0.03 of one of 40 x 64, and 0.095 for four tiles of 37 x 37. Towards a
tile's edge it is 0.37 in the outermost latent, 0.15 in the second, 0.06 in the third and no more than elsewhere from
the fourth on. Blended over 10 to 16 latents the error's gradient in a seam is 0.8 to 0.9 of that elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.session import Session

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """How large a tile is and how far neighbours overlap at least, both in latents.

    Raises:
        RequestError: the overlap is not positive, or above half a tile.
    """

    tile: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        most = self.tile // 2
        if not 1 <= self.overlap <= most:
            raise RequestError(
                f"tiles of {self.tile} latents overlap by {self.overlap}; it must be 1 to half a tile, {most}"
            )


TILING = Tiling()
# In smaller tiles the statistics of one have little to do with the picture's, see above.
LEAST_TILE = 32


def quarters(tile: int) -> Tiling:
    """Tiles of a size that overlap by a quarter of it, as those of ``TILING`` do."""
    return Tiling(tile, max(1, tile // 4))


def decode(
    session: Session, latents: Float32, scaling_factor: float, factor: int, tiles: Tiling | None = None
) -> Float32:
    """Latents -> one image.

    Args:
        session: the ``vae_decoder``.
        latents: float32 (C, h, w) or (1, C, h, w), as the sampler left them.
        scaling_factor: they are divided by it.
        factor: pixels per latent, each way.
        tiles: decode in tiles what is larger than one; without it everything is decoded whole.

    Returns:
        sample, float32 (3, H, W), mostly in [-1, 1].

    Raises:
        RequestError: ONNX Runtime ran out of memory.
    """
    image = latents[0] if latents.ndim == 4 else latents
    scaled = (image / np.float32(scaling_factor)).astype(np.float32)

    def whole(part: Float32) -> Float32:
        sample: Float32 = session.run(latent_sample=np.ascontiguousarray(part)[None])["sample"][0]
        return sample

    return in_tiles(whole, scaled, tiles, 1, factor)


def encode(
    session: Session, sample: Float32, scaling_factor: float, factor: int, tiles: Tiling | None = None
) -> Float32:
    """One image -> the mean of its latents' distribution; nothing is drawn.

    Args:
        session: the ``vae_encoder``.
        sample: float32 (3, H, W) or (1, 3, H, W) in [-1, 1]; H and W are multiples of ``factor``.
        scaling_factor: the mean is multiplied by it.
        factor: pixels per latent, each way.
        tiles: encode in tiles what is larger than one.

    Returns:
        latents, float32 (C, h, w).

    Raises:
        RequestError: a side is no multiple of ``factor``, or ONNX Runtime ran out of memory.
    """
    image = sample[0] if sample.ndim == 4 else sample
    _, height, width = image.shape
    if height % factor or width % factor:
        raise RequestError(f"the image is {width}x{height}; both sides must be multiples of {factor}")

    def whole(part: Float32) -> Float32:
        parameters: Float32 = session.run(sample=np.ascontiguousarray(part, np.float32)[None])["latent_parameters"][0]
        return parameters[: len(parameters) // 2]

    mean = in_tiles(whole, image, tiles, factor, 1)
    return (mean * np.float32(scaling_factor)).astype(np.float32)


def in_tiles(
    network: Callable[[Float32], Float32], image: Float32, tiles: Tiling | None, of_input: int, of_output: int
) -> Float32:
    """Apply a network of fixed magnification to an image, in blended tiles where it is larger than one.

    Args:
        network: takes a part of the image, (channels, rows, columns).
        image: the whole.
        tiles: as for ``decode``.
        of_input, of_output: pixels of the network's input and of its output for each latent.
    """
    rows, columns = image.shape[1] // of_input, image.shape[2] // of_input
    if tiles is None or max(rows, columns) <= tiles.tile:
        return magnified(network(image), rows * of_output, columns * of_output)
    result: Float32 | None = None
    for (top, bottom, down), (left, right, across) in itertools.product(
        weighted_spans(rows, tiles, of_output), weighted_spans(columns, tiles, of_output)
    ):
        part = network(image[:, top * of_input : bottom * of_input, left * of_input : right * of_input])
        part = magnified(part, (bottom - top) * of_output, (right - left) * of_output)
        if result is None:
            result = np.zeros((len(part), rows * of_output, columns * of_output), np.float32)
        place = result[:, top * of_output : bottom * of_output, left * of_output : right * of_output]
        place += part * down[:, None] * across
    assert result is not None
    return result


def magnified(image: Float32, height: int, width: int) -> Float32:
    """The image, if it has the size that the latents' factor promises.

    Raises:
        RequestError: it has another.
    """
    if image.shape[1:] != (height, width):
        raise RequestError(
            f"the VAE gives {image.shape[2]}x{image.shape[1]} where {width}x{height} was due; "
            "the model's factor between pixels and latents is another"
        )
    return image


def spans(size: int, tiles: Tiling) -> list[tuple[int, int]]:
    """Begins and ends, in latents, of the fewest tiles that cover ``size``, evenly spread."""
    count = max(1, -(-(size - tiles.overlap) // (tiles.tile - tiles.overlap)))
    if count == 1:
        return [(0, size)]
    begins = [round(i * (size - tiles.tile) / (count - 1)) for i in range(count)]
    return [(begin, begin + tiles.tile) for begin in begins]


def weighted_spans(size: int, tiles: Tiling, pixels: int) -> list[tuple[int, int, Float32]]:
    """The spans, each with the weights of its pixels; over all spans the weights of a pixel add up to one."""
    found = spans(size, tiles)
    fades = [fade(begin, end, size, tiles.overlap, pixels) for begin, end in found]
    total = np.zeros(size * pixels)
    for (begin, end), weights in zip(found, fades, strict=True):
        total[begin * pixels : end * pixels] += weights
    return [
        (begin, end, (weights / total[begin * pixels : end * pixels]).astype(np.float32))
        for (begin, end), weights in zip(found, fades, strict=True)
    ]


def fade(begin: int, end: int, size: int, overlap: int, pixels: int) -> npt.NDArray[np.float64]:
    """How much a tile counts at its pixels: less and less towards its edges, but not towards those of the image."""
    weights = np.ones((end - begin) * pixels)
    if begin > 0:
        weights[: overlap * pixels] *= smooth_step(overlap * pixels)
    if end < size:
        weights[-overlap * pixels :] *= smooth_step(overlap * pixels)[::-1]
    return weights


def smooth_step(count: int) -> npt.NDArray[np.float64]:
    """3 t² - 2 t³ at the middles of ``count`` equal parts of [0, 1]: from 0 to 1, level at both ends."""
    t = (np.arange(count) + 0.5) / count
    return t * t * (3 - 2 * t)
