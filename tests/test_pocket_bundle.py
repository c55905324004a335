"""Proves of the committed pocket model what a newcomer is promised: it is small, knows its words and says which it does
not know, draws what a sentence says, and needs little memory for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.bundle import TextConditioning, open_bundle
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.world import COLOURS

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "models_onnx" / "pocket"
MOST_BYTES = 25_000_000
MOST_MEMORY = 400_000  # KiB
# The command line in a process that says at its end how much memory it had at most.
MEASURED = """
import sys
from pathlib import Path
from runtime.__main__ import main
status = main(sys.argv[1:])
print(*[line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")])
sys.exit(status)
"""


def draw(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEASURED, "--model", str(POCKET), *words]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in POCKET.iterdir()) <= MOST_BYTES


def test_it_knows_the_words_of_its_captions() -> None:
    conditioning = open_bundle(POCKET).conditioning
    assert isinstance(conditioning, TextConditioning)
    assert list(conditioning.known_words or ()) == list(known_words())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say how much memory was used")
def test_a_sentence_becomes_a_picture_in_little_memory(tmp_path: Path) -> None:
    said = draw("a red sneaker on a white background", "--seed", "7", "-o", "sneaker.png", folder=tmp_path)
    peak = re.search(r"VmHWM:\s*(\d+) kB", said.stdout)
    assert peak
    assert int(peak[1]) < MOST_MEMORY
    with Image.open(tmp_path / "sneaker.png") as picture:
        pixels = np.asarray(picture, np.float64)
    assert pixels.shape == (64, 64, 3)
    edge = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    assert np.abs(edge - COLOURS["white"]).max() < 20
    red = np.abs(pixels - COLOURS["red"]).max(axis=2) < 60
    assert 0.03 < red.mean() < 0.6


@pytest.mark.slow
def test_a_word_that_it_has_never_read_is_said(tmp_path: Path) -> None:
    said = draw("a red unicorn on blue", "--seed", "7", "--steps", "2", "-o", "unicorn.png", folder=tmp_path)
    assert "'unicorn' is not in this model's world; it knows: " in said.stderr
    assert "sneaker" in said.stderr
