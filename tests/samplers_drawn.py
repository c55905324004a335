"""Draws docs/samplers.png and writes docs/samplers-drawn.md: ``python -m tests.samplers_drawn``.

Each sampler's ten steps are judged by ``python -m training evaluate``, whose reports are kept in runs/samplers; what is
there already is not made again, so that this can be stopped and continued. The classifier is the one that README
trains, and the data set is where ``DIFFUSION_ANYWHERE_DATA`` says or fetched.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from runtime.plan import SAMPLERS
from runtime.samplers import KNOWN_AS
from tests.samplers_table import DOCS, STEPS
from training.classifier.agreement import Proportion

UInt8 = npt.NDArray[np.uint8]

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "models_onnx" / "mnist-paper"
REPORTS = ROOT / "runs" / "samplers"
PAGE, SHEET = DOCS / "samplers-drawn.md", DOCS / "samplers.png"

REFERENCE = ("ddim", 50)
COUNT, CLASSES = 1000, 10
NAME_WIDTH, GAP, BLOCKS = 132, 4, 2  # pixels; the samplers stand in two columns
WHITE, BLACK = 255, 0

TEXT = f"""# What the samplers draw

Written by `python -m tests.samplers_drawn`; the figures are measured. `mnist-paper` with every sampler of
[the table](samplers.md) in {STEPS} steps, guidance scale 3 and no other option. All start from the same noise.

![The digits 0 to 9 by each sampler in {STEPS} steps](samplers.png)

How many of {COUNT:,} samples (100 of each digit, seeds from 0) a classifier reads as the digit that was asked for, with
the 95 % interval, beside {REFERENCE[1]} steps of {KNOWN_AS[REFERENCE[0]]}, the model's default. Each row is a command,
here the first's:

```bash
python -m training evaluate models_onnx/mnist-paper --dataset mnist --count {COUNT} --steps {STEPS} --sampler ddpm \\
  --out runs/samplers/ddpm-{STEPS}
```

| sampler | steps | read rightly | 95 % interval |
|---|---|---|---|
"""
REMARKS = """
Samplers without noise of their own lead to nearly the same picture; PLMS with so few steps leaves grey smudges.
Evaluations of the network are twice as many for Heun, DPM2 and DPM++ SDE, and one more for PLMS. LCM and TCD are made
for networks that were distilled for few steps, which this one was not.
"""


def folder(sampler: str, steps: int) -> Path:
    return REPORTS / f"{sampler}-{steps}"


def report(sampler: str, steps: int) -> dict[str, Any]:
    """What ``training evaluate`` said of it; it is run where it has not been."""
    where = folder(sampler, steps)
    if not (where / "evaluation.json").exists():
        command = [sys.executable, "-m", "training", "evaluate", str(BUNDLE), "--dataset=mnist", f"--count={COUNT}"]
        subprocess.run([*command, f"--steps={steps}", f"--sampler={sampler}", f"--out={where}"], cwd=ROOT, check=True)
    said: dict[str, Any] = json.loads((where / "evaluation.json").read_text("utf-8"))
    manifest = hashlib.sha256((BUNDLE / "manifest.json").read_bytes()).hexdigest()
    asked = (said["request"]["sampler"], said["request"]["steps"], said["request"]["count"])
    if said["bundle"]["manifest_sha256"] != manifest or asked != (sampler, steps, COUNT):
        sys.exit(f"{where} judges another bundle or request; remove it, and it is made anew")
    return said


def row(sampler: str, steps: int) -> str:
    overall = report(sampler, steps)["agreement"]["overall"]
    proportion = Proportion(overall["hits"], overall["count"])
    low, high = proportion.interval()
    return f"| {KNOWN_AS[sampler]} | {steps} | {100 * proportion.rate:.1f} % | {100 * low:.1f} to {100 * high:.1f} |"


def first_of_each_class(sampler: str) -> list[UInt8]:
    with np.load(folder(sampler, STEPS) / "images.npz", allow_pickle=False) as drawn:
        images, labels = drawn["images"], drawn["labels"]
    return [images[np.flatnonzero(labels == label)[0], :, :, 0] for label in range(CLASSES)]


def strip(sampler: str, digits: Sequence[UInt8]) -> Image.Image:
    """The sampler's name and its digits, uint8 (28, 28) each, twice enlarged."""
    row = Image.fromarray(np.concatenate(digits, axis=1))
    row = row.resize((2 * row.width, 2 * row.height), Image.Resampling.BICUBIC)
    picture = Image.new("L", (NAME_WIDTH + row.width, row.height), WHITE)
    picture.paste(row, (NAME_WIDTH, 0))
    middle = (6, row.height // 2)
    ImageDraw.Draw(picture).text(middle, KNOWN_AS[sampler], BLACK, ImageFont.load_default(16), anchor="lm")
    return picture


def places(width: int, height: int) -> dict[str, tuple[int, int]]:
    """Where each sampler's strip, of that size in pixels, stands: down the first column and then the next."""
    rows = -(-len(SAMPLERS) // BLOCKS)
    return {name: (k // rows * (width + GAP), k % rows * (height + GAP)) for k, name in enumerate(SAMPLERS)}


def sheet() -> Image.Image:
    strips = {sampler: strip(sampler, first_of_each_class(sampler)) for sampler in SAMPLERS}
    width, height = next(iter(strips.values())).size
    corners = places(width, height)
    across, down = (max(each) for each in zip(*corners.values(), strict=True))
    picture = Image.new("L", (across + width, down + height), WHITE)
    for sampler, corner in corners.items():
        picture.paste(strips[sampler], corner)
    return picture


if __name__ == "__main__":
    rows = [row(sampler, STEPS) for sampler in SAMPLERS]
    rows.append(row(*REFERENCE))
    sheet().save(SHEET, optimize=True)
    PAGE.write_text(TEXT + "\n".join(rows) + "\n" + REMARKS, "utf-8")
