"""Sheets to look at: the first images of each class, those that were read as another class, the same noise at several
settings, and samples beside the training images nearest to them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from training.arrays import UInt8
from training.classifier.agreement import Int64
from training.data import Dataset
from training.evaluate.neighbours import Neighbours
from training.evaluate.samples import Samples

IMAGES_PER_CLASS = 10
MOST_DISAGREEMENTS = 100
MOST_CLASSES = 20  # in a row of a sweep
MOST_NEIGHBOURS = 20  # samples that are shown with theirs, over all classes, two in a row
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


def sweep(settings: Sequence[tuple[str, Samples]], num_classes: int) -> Image.Image:
    """The first image of each class at every setting, a row for each, which begin at the same noise."""
    rows = []
    for name, samples in settings:
        firsts = [np.flatnonzero(samples.labels == k)[:1] for k in range(min(num_classes, MOST_CLASSES))]
        tiles = [tile(samples.images[i]) for first in firsts for i in first]
        rows.append([words(name, tiles[0].size), *tiles])
    return sheet(rows)


def neighbours(samples: Samples, found: Neighbours, training: Dataset) -> Image.Image:
    """Of each class the samples that come nearest to the training set, each followed by the training images nearest to
    it; the nearest of all first."""
    order, classes = np.argsort(found.nearest, kind="stable"), np.unique(samples.labels)
    each = max(1, MOST_NEIGHBOURS // len(classes))
    shown = np.concatenate([order[samples.labels[order] == k][:each] for k in classes])
    groups = []
    for i in shown[np.argsort(found.nearest[shown], kind="stable")][:MOST_NEIGHBOURS]:
        group = [tile(samples.images[i], f"drawn: {samples.labels[i]}")]
        for k, distance in zip(found.indices[i], found.distances[i], strict=True):
            group.append(tile(training.images[k], f"{training.labels[k]} at {distance:.3f}"))
        groups.append([*group, words("", group[0].size)])
    return sheet([[part for group in groups[i : i + 2] for part in group][:-1] for i in range(0, len(groups), 2)])


def words(text: str, size: tuple[int, int]) -> Image.Image:
    """A tile with nothing but words."""
    blank = Image.new("RGB", size, "white")
    ImageDraw.Draw(blank).text((size[0] // 2, size[1] // 2), text, fill="black", anchor="mm")
    return blank


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
