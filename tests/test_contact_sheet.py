"""Proves ``--sheet``: every picture of a list is there in its place, with its words, and so it is of a list that is
continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from runtime.__main__ import main
from runtime.contact_sheet import GAP, LINE, LINES, SIDE, contact_sheet, fitted, wrapped
from runtime.image import carried_by


@pytest.fixture
def model(models: Path) -> str:
    """The tiny bundle of text, by name; the one of classes lies beside it."""
    return "tiny-text"


def cell(sheet: Image.Image, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of the sheet, and the paper below it."""
    left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + GAP + LINES * LINE)
    pixels = np.asarray(sheet)[top:, left : left + SIDE]
    return pixels[:SIDE], pixels[SIDE : SIDE + LINES * LINE]


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_a_list_is_shown_with_its_words(model: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["red", "blue", "green"] if kind == "text" else ["owl", "dog", "0"]
    words = ["--model", model if kind == "text" else "tiny", "--prompts", "list.txt", "-o", "out", "--sheet", "all.png"]
    Path("list.txt").write_text("\n".join(lines[:2]))
    assert main([*words, "--steps", "2"]) == 0
    Path("list.txt").write_text("\n".join(lines))
    assert main([*words, "--steps", "2"]) == 2  # the sheet is there
    assert main([*words, "--steps", "2", "--overwrite"]) == 0
    assert "all.png: 3 pictures with their words" in capsys.readouterr().out
    files = sorted(Path("out").glob("*.png"))
    with Image.open("all.png") as sheet:
        for number, file in enumerate(files):
            picture, paper = cell(sheet, *divmod(number, 3))
            with Image.open(file) as drawn:
                np.testing.assert_array_equal(picture, np.asarray(fitted(drawn.convert("RGB"))))
            assert paper.min() < 100  # words are written there
        assert np.asarray(sheet).shape[0] == GAP + SIDE + GAP + LINES * LINE
        made = json.loads(carried_by(sheet) or "")["pictures"]
    assert [json.loads(carried_by(Image.open(file)) or "") for file in files] == made


def test_pictures_of_any_shape_fit(tmp_path: Path) -> None:
    red = Image.new("RGB", (2000, 10), (200, 0, 0))
    assert fitted(red.copy()).size == (SIDE, SIDE)
    small = fitted(Image.new("RGB", (28, 20), (0, 0, 200)))
    blue = (np.asarray(small) == (0, 0, 200)).all(-1)
    assert blue.sum() == 28 * 6 * 20 * 6  # every pixel a block of 6 x 6
    red.save(tmp_path / "red.png")
    assert contact_sheet([(tmp_path / "red.png", "")] * 7).width == GAP + 4 * (SIDE + GAP)


def test_long_words_are_cut() -> None:
    font = ImageFont.load_default(13)
    lines = wrapped("a very long sentence about everything there is in this world and beyond it " * 3, font)
    assert len(lines) == LINES
    assert lines[-1].endswith("…")
    assert wrapped("", font) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["red", "-o", "a.png", "--sheet", "b.png"], "error: --sheet shows what --prompts asks for"),
        (["--prompts", "list.txt", "-o", "out", "--sheet", "b.gif"], "error: "),
        (
            ["--prompts", "list.txt", "-o", "out", "--sheet", "nowhere/b.png"],
            "error: the folder nowhere does not exist",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_drawn(
    model: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("red")
    assert main(["--model", model, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1
    assert not Path("out").exists()
