"""Proves that the page of tasks is true: its commands run from top to bottom in an empty folder, print what it says,
and draw the pictures that it shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, Run, empty_folder, pictures, run_snippet, runs, snippets
from PIL import Image, ImageSequence

PAGE = ROOT / "docs" / "tasks.md"
LEAST_PSNR_DB = 35.0  # what processors round otherwise makes less of a difference, and another picture a larger one
MOST_BYTES = 2**20  # of all pictures
Workspace = tuple[Path, dict[int, AssertionError]]


def test_every_snippet_is_of_a_known_kind() -> None:
    assert {snippet.language for snippet in snippets(PAGE.read_text("utf-8"))} == {"bash", "python", "text"}


def test_the_pictures_of_the_page_are_there_and_no_others() -> None:
    shown = pictures(PAGE)
    assert sorted(PAGE.with_suffix("").glob("*")) == sorted(shown)
    assert sum(path.stat().st_size for path in shown) < MOST_BYTES


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A folder where all of the page has been run, and what did not go as it says, by line."""
    folder, failed = empty_folder(tmp_path_factory.mktemp("tasks")), {}
    for each in runs(PAGE.read_text("utf-8")):
        try:
            run_snippet(each, folder)
        except AssertionError as error:
            failed[each.snippet.line] = error
    return folder, failed


@pytest.mark.slow
@pytest.mark.parametrize("each", runs(PAGE.read_text("utf-8")), ids=lambda each: f"line{each.snippet.line}")
def test_snippet_runs(each: Run, workspace: Workspace) -> None:
    if each.snippet.line in workspace[1]:
        raise workspace[1][each.snippet.line]


def frames(path: Path) -> np.ndarray:
    """All frames of a picture, float64 (frames, H, W, 3)."""
    with Image.open(path) as picture:
        return np.stack([np.asarray(frame.convert("RGB"), np.float64) for frame in ImageSequence.Iterator(picture)])


@pytest.mark.slow
@pytest.mark.parametrize("path", pictures(PAGE), ids=lambda path: path.name)
def test_the_page_shows_what_its_commands_draw(path: Path, workspace: Workspace) -> None:
    shown, drawn = frames(path), frames(workspace[0] / path.name)
    assert shown.shape == drawn.shape
    mean_square = np.square(shown - drawn).mean()
    assert mean_square == 0 or 10 * math.log10(255**2 / mean_square) >= LEAST_PSNR_DB
