"""The training pictures that come nearest to what was drawn: does the model repeat what it has seen?

Pictures of different sizes, places and colours are compared as their data sets have them: cut to the thing, 28 x 28,
grey, black around it. The distance is the root mean square over these pixels, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.arrays import UInt8
from training.stable_diffusion.pocket.render import enlarge
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import Scene

Float32 = npt.NDArray[np.float32]

SIDE = 28
CUT_SIDE = 40  # pixels of a training picture's thing before it is made SIDE high: as large as a medium one is drawn
DISTINCT = 40.0  # of 255, in some channel, by which a pixel of a thing differs from the background
LEAST_PIXELS = 20  # fewer are no thing


@dataclass(frozen=True)
class Neighbour:
    """A picture and the training picture nearest to it.

    Attributes:
        kind: what it shows.
        picture, nearest: both as they are compared, float32 (28, 28).
        distance: from 0 to 1.
    """

    kind: str
    picture: Float32
    nearest: Float32
    distance: float


class TrainingPictures:
    """All training pictures, by kind, as they are compared."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.framed: dict[str, Float32] = {}

    def of(self, kind: str) -> Float32:
        """Those of a kind, float32 (N, 28, 28)."""
        if kind not in self.framed:
            images = self.sources.images[kind]
            self.framed[kind] = np.stack([framed(*enlarge(image, kind, CUT_SIDE)) for image in images])
        return self.framed[kind]


def nearest(pictures: UInt8, scenes: Sequence[Scene], training: TrainingPictures) -> list[Neighbour]:
    """The nearest training picture of its kind to each picture of one thing; others are passed over.

    Args:
        pictures: uint8 (N, 64, 64, 3).
        scenes: what they show, (N,).
        training: what the model learned from.
    """
    found = []
    for pixels, scene in zip(pictures, scenes, strict=True):
        cut = cut_out(pixels) if len(scene.things) == 1 else None
        if cut is None:
            continue
        kind = scene.things[0].kind
        known = training.of(kind)
        distances = np.sqrt(np.square(known - cut).mean((1, 2)))
        best = int(distances.argmin())
        found.append(Neighbour(kind, cut, known[best], float(distances[best])))
    return found


def cut_out(pixels: UInt8) -> Float32 | None:
    """The thing on a plain background as it is compared, float32 (28, 28); None where there is none."""
    values = pixels.astype(np.float32)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    inside = np.abs(values - np.median(edge, axis=0)).max(axis=2) > DISTINCT
    if inside.sum() < LEAST_PIXELS:
        return None
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    grey, alpha = values[box].mean(axis=2), inside[box].astype(np.float32)
    mean, spread = grey[inside[box]].mean(), max(float(grey[inside[box]].std()), 1.0)
    return framed(alpha, np.clip((grey - mean) / (3 * spread), -1, 1))


def framed(alpha: Float32, shading: Float32) -> Float32:
    """Silhouette and shading, (h, w) both, as one grey picture in the middle of a square, float32 (28, 28)."""
    spread = max(float(shading[alpha > 0.5].std()), 1e-3) if (alpha > 0.5).any() else 1.0
    grey = alpha * (0.7 + 0.3 * np.clip(shading / (3 * spread), -1, 1))
    side = max(grey.shape)
    square = np.zeros((side, side), np.float32)
    top, left = (side - grey.shape[0]) // 2, (side - grey.shape[1]) // 2
    square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
    return np.asarray(Image.fromarray(square, "F").resize((SIDE, SIDE), Image.Resampling.BILINEAR)).clip(0, 1)
