"""The pictures of a list on one sheet, each above what was asked for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from runtime.picture_index import Index, Record

MAX_PICTURES = 400  # of a longer list the first ones are shown
SIDE = 192  # pixels: smaller pictures are enlarged by a whole number, larger ones are made smaller
COLUMNS = 6
GAP, LINE, LINES = 8, 15, 2  # pixels around a picture, for a line of its words, and how many lines
INK, PAPER = (32, 36, 42), (255, 255, 255)


def drawn(index: Index, count: int) -> list[Record]:
    """Of the first ``count`` pictures of a list those that were drawn."""
    records = (index.records[number] for number in sorted(index.records) if number <= count)
    return [record for record in records if record.file is not None]


def captioned(records: Sequence[Record], folder: Path, names: Sequence[str]) -> list[tuple[Path, str]]:
    """The files of drawn pictures, and what each shows.

    Args:
        records: of these pictures.
        folder: where their files are.
        names: of the classes, if the model draws classes.
    """
    shown = ((record.file or "", record.settings) for record in records)
    return [
        (folder / file, str(made["prompt"] if "prompt" in made else names[made["class_label"]])) for file, made in shown
    ]


def contact_sheet(pictures: Sequence[tuple[Path, str]]) -> Image.Image:
    """Pictures with their words, row by row; a gap is left where the last row is not full.

    Args:
        pictures: files that this program wrote, and captions, of which the first two lines are shown.
    """
    columns = min(COLUMNS, math.ceil(math.sqrt(1.5 * len(pictures))))  # pages are wider than high
    width, height = SIDE + GAP, SIDE + GAP + LINES * LINE
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LINE - 2)
    for number, (path, caption) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = GAP + column * width, GAP + row * height
        with Image.open(path) as opened:
            page.paste(fitted(opened.convert("RGB")), (left, top))
        for line, words in enumerate(wrapped(caption, font)):
            pen.text((left, top + SIDE + line * LINE), words, INK, font)
    return page


def fitted(picture: Image.Image) -> Image.Image:
    """A picture in a square of ``SIDE`` pixels: enlarged by a whole number, every pixel a block, or made smaller."""
    longest = max(picture.size)
    if longest > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    else:
        times = SIDE // longest
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def wrapped(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The first lines of a caption, as long as fit."""
    most = int(SIDE / max(font.getlength("n"), 1))
    return textwrap.wrap(caption, most, max_lines=LINES, placeholder=" …")
