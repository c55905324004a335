"""Proves that docs/samplers-drawn.md lists every sampler, and that its sheet shows what the runtime draws."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from runtime import load
from runtime.class_to_image import ClassToImage
from runtime.plan import SAMPLERS
from runtime.samplers import KNOWN_AS
from tests.samplers_drawn import BUNDLE, CLASSES, COUNT, NAME_WIDTH, PAGE, REFERENCE, SHEET, places, strip
from tests.samplers_table import STEPS

ROWS = re.findall(r"^\| (.+) \| (\d+) \| (\d+\.\d) % \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE)
RIGHTLY = {(name, int(steps)): float(percent) for name, steps, percent in ROWS}
ROUNDING = 3  # grey levels, of 255, by which processors may differ


@pytest.fixture(scope="module")
def pipeline() -> ClassToImage:
    loaded = load(BUNDLE, provider="cpu")
    assert isinstance(loaded, ClassToImage)
    return loaded


def test_every_sampler_is_listed_once() -> None:
    names = [KNOWN_AS[sampler] for sampler in SAMPLERS]
    assert list(RIGHTLY) == [*((name, STEPS) for name in names), (KNOWN_AS[REFERENCE[0]], REFERENCE[1])]


def test_the_best_of_ten_steps_matches_fifty_of_the_default() -> None:
    reference = RIGHTLY.pop((KNOWN_AS[REFERENCE[0]], REFERENCE[1]))
    assert max(RIGHTLY.values()) >= reference


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sheet_shows_what_is_drawn(pipeline: ClassToImage, sampler: str) -> None:
    """Image k of the evaluation has the seed k, and the classes share the images."""
    digits = [
        pipeline(label, sampler=sampler, num_inference_steps=STEPS, seed=label * COUNT // CLASSES).images[0, :, :, 0]
        for label in range(CLASSES)
    ]
    drawn = strip(sampler, digits)
    left, top = places(*drawn.size)[sampler]
    with Image.open(SHEET) as sheet:
        shown = sheet.convert("L").crop((left, top, left + drawn.width, top + drawn.height))
    difference = np.abs(np.asarray(shown, np.int16) - np.asarray(drawn, np.int16))
    assert difference[:, NAME_WIDTH:].max() <= ROUNDING  # fonts are drawn differently elsewhere
