"""Sheets to look at: the first images of each class, and those that were read as another class."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from training.arrays import UInt8
from training.classifier.agreement import Int64
from training.evaluate.samples import Samples

IMAGES_PER_CLASS = 10
MOST_DISAGREEMENTS = 100
LEAST_SIDE = 56  # pixels of a tile, so that small images can be seen and captions fit below them
CAPTION_HEIGHT = 14
GAP = 2
GREY = 127


def grid_by_class(samples: Samples, num_classes: int) -> Image.Image:
    """The first images of each class, a row for each."""
    rows = [np.flatnonzero(samples.labels == k)[:IMAGES_PER_CLASS] for k in range(num_classes)]
    return sheet([[tile(samples.images[i]) for i in row] for row in rows])


def disagreements(samples: Samples, read: Int64) -> Image.Image | None:
    """The first images that were read as another class than they were asked for; None where there are none."""
    found = np.flatnonzero(samples.labels != read)[:MOST_DISAGREEMENTS]
    tiles = [tile(samples.images[i], f"{samples.labels[i]} read {read[i]}") for i in found]
    rows = [tiles[i : i + IMAGES_PER_CLASS] for i in range(0, len(tiles), IMAGES_PER_CLASS)]
    return sheet(rows) if rows else None


def tile(image: UInt8, caption: str | None = None) -> Image.Image:
    """One image, uint8 (C, H, W), enlarged by a whole factor, with words below it."""
    pixels = image.transpose(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    factor = -(-LEAST_SIDE // max(picture.size))
    width, height = picture.width * factor, picture.height * factor
    enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
    if caption is None:
        return enlarged
    captioned = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    captioned.paste(enlarged)
    ImageDraw.Draw(captioned).text((width // 2, height + 1), caption, fill="black", anchor="ma")
    return captioned


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Tiles of one size, row by row, with a gap of middle grey between them."""
    width, height = next(tile.size for row in rows for tile in row)
    columns = max(map(len, rows))
    size = (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, (GREY, GREY, GREY))
    for i, row in enumerate(rows):
        for j, each in enumerate(row):
            picture.paste(each, (j * (width + GAP), i * (height + GAP)))
    return picture


def png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()
