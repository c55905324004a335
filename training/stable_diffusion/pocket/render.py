"""Scenes to pictures: real grey images, enlarged with clean edges, tinted, and laid on a plain background.

A thing is cut to its bounding box and enlarged bicubically together with its silhouette, whose edge is then sharpened
to about a pixel. What is inside a garment (seams, folds, prints) stays as light and shade around its colour; digits are
flat, as written with a pen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.arrays import UInt8
from training.stable_diffusion.pocket.config import IMAGE_SIZE
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import COLOURS, DIGITS, Scene, Thing

Float32 = npt.NDArray[np.float32]

LONGEST_SIDE = {"small": 28, "medium": 40, "large": 54, None: 29}  # pixels, before the jitter
SIZE_JITTER = 2  # pixels, either way
SHIFTS = {"small": 17, "medium": 11, "large": 0, None: 16}  # pixels from the centre to where a position is
SHIFT_JITTER = 1
COLOUR_JITTER = 6  # of 255, in each channel

BACKGROUND_LEVEL = 10  # grey values up to this are background: Fashion-MNIST's is not quite black
SOLID_LEVEL = 40  # from here on a garment is opaque
# Handles and straps have the background between them; in other garments a dark spot is a dark spot.
SEEN_THROUGH = ("bag", "sandal")
SHADE_RANGE = 100.0  # grey values from the thing's mean to full light or shade
SHADE = 0.42  # how far full shade is from the colour to black
LIGHT = 0.30  # and full light from it to white


@dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
        pixels: uint8 (64, 64, 3).
        alpha: how much of each pixel belongs to a thing, 0 .. 1, float32 (64, 64).
    """

    pixels: UInt8
    alpha: Float32


def render(scene: Scene, sources: Sources, draws: np.random.Generator) -> Picture:
    """Draw a scene; which pictures are taken, and by how much sizes, places and colours are off, is up to ``draws``."""
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    canvas[:] = tone(scene.background, draws)
    covered = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for thing in scene.things:
        longest = LONGEST_SIDE[thing.size] + draws.integers(-SIZE_JITTER, SIZE_JITTER + 1)
        alpha, shading = enlarge(sources.draw(thing.kind, draws), thing.kind, int(longest))
        colours = shade(tone(thing.colour, draws), shading)
        rows, columns = place(thing, alpha.shape, draws)
        canvas[rows, columns] += alpha[..., None] * (colours - canvas[rows, columns])
        covered[rows, columns] = np.maximum(covered[rows, columns], alpha)
    return Picture(np.clip(canvas + 0.5, 0, 255).astype(np.uint8), covered)


def tone(colour: str, draws: np.random.Generator) -> Float32:
    """The colour, a little off."""
    rgb = np.array(COLOURS[colour]) + draws.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    return np.clip(rgb, 0, 255).astype(np.float32)


def shade(colour: Float32, shading: Float32) -> Float32:
    """A colour under light and shade from -1 to 1: (3,), (h, w) -> (h, w, 3)."""
    darker, lighter = -np.minimum(shading, 0)[..., None], np.maximum(shading, 0)[..., None]
    # Black has no shade and white no light: what they cannot give they give the other way, or they would be flat.
    lightness = float(colour.mean()) / 255
    down, up = colour * -SHADE, (255 - colour) * LIGHT
    if lightness < 0.2:
        down, up = colour * -0.6, np.full(3, 62, np.float32)
    elif lightness > 0.9:
        down, up = colour * -0.24, 255 - colour
    shaded: Float32 = colour + darker * down + lighter * up
    return shaded


def place(thing: Thing, shape: tuple[int, ...], draws: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns that a thing of this shape covers, all inside the picture."""
    words = thing.position.split()
    towards = (("bottom" in words) - ("top" in words), ("right" in words) - ("left" in words))
    slices = []
    for direction, length in zip(towards, shape, strict=True):
        jitter = draws.integers(-SHIFT_JITTER, SHIFT_JITTER + 1)
        middle = IMAGE_SIZE / 2 + direction * SHIFTS[thing.size] + jitter
        start = int(np.clip(round(middle - length / 2), 0, IMAGE_SIZE - length))
        slices.append(slice(start, start + length))
    return slices[0], slices[1]


def enlarge(image: UInt8, kind: str, longest: int) -> tuple[Float32, Float32]:
    """Cut a source picture to its thing and enlarge that.

    Args:
        image: uint8 (28, 28).
        kind: what it shows.
        longest: the longer side of the result without its soft edge, in pixels.

    Returns:
        alpha, 0 .. 1, and shading, -1 .. 1, both float32 (h, w).
    """
    grey: Float32 = image.astype(np.float32)
    opaque: Float32 = grey / np.float32(255) if kind in DIGITS else silhouette(grey, filled=kind not in SEEN_THROUGH)
    rows, columns = (np.flatnonzero((grey > BACKGROUND_LEVEL).any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    grey, opaque = np.pad(grey[box], 1), np.pad(opaque[box], 1)
    scale = longest / (max(grey.shape) - 2)
    size = tuple(min(IMAGE_SIZE, round(scale * length)) for length in grey.shape)
    soft = resize(opaque, size)
    alpha: Float32 = np.clip((soft - 0.5) * max(1.0, 0.9 * scale) + 0.5, 0, 1)
    if kind in DIGITS:
        return alpha, np.zeros_like(alpha)
    # Divided by the silhouette, since near the edge the black around the thing would darken it.
    inside = resize(grey * opaque, size) / np.maximum(soft, 0.1)
    mean = float((inside * alpha).sum() / max(float(alpha.sum()), 1.0))
    return alpha, np.clip((inside - mean) / SHADE_RANGE, -1, 1)


def silhouette(grey: Float32, filled: bool) -> Float32:
    """How opaque each pixel of a garment is, 0 .. 1; ``filled`` covers what garment surrounds on all four sides."""
    opaque: Float32 = np.clip((grey - BACKGROUND_LEVEL) / (SOLID_LEVEL - BACKGROUND_LEVEL), 0, 1)
    if filled:
        solid = grey > BACKGROUND_LEVEL
        surrounded = np.ones_like(solid)
        for axis in (0, 1):
            surrounded &= np.logical_or.accumulate(solid, axis)
            surrounded &= np.flip(np.logical_or.accumulate(np.flip(solid, axis), axis), axis)
        opaque[surrounded] = 1
    return opaque


def resize(values: Float32, size: tuple[int, ...]) -> Float32:
    """Bicubic resampling of a float image to (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(values, "F").resize((width, height), Image.Resampling.BICUBIC))
