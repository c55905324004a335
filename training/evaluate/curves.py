"""How a run's loss fell, as a picture: out of what it logged for TensorBoard, drawn with Pillow.

Pillow and not matplotlib, which no command needs otherwise: one panel, two axes and two lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from training.errors import DataError

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 480, 80, 24, 48, 48
SCALE = 2  # drawn twice as large and made smaller, so that lines are smooth
LINES = 6  # of the grid, about
SMOOTHING = 0.98
INK, GREY, GRID, PALE, STRONG = "#20242a", "#787e86", "#dee2e6", "#b9d2ea", "#2668aa"


@dataclass(frozen=True)
class Curve:
    """The loss at each logged step: steps int64 (N,) and losses float64 (N,), finite and above 0."""

    steps: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]

    @property
    def smooth(self) -> npt.NDArray[np.float64]:
        """The exponential moving average that the run's progress bar shows."""
        values = self.losses.copy()
        for i in range(1, len(values)):
            values[i] = SMOOTHING * values[i - 1] + (1 - SMOOTHING) * values[i]
        return values


def read_curve(run: Path) -> Curve:
    """The loss that a run logged into its folder; where steps were taken again after a save, what came last counts.

    Raises:
        DataError: nothing was logged there.
    """
    accumulator = EventAccumulator(str(run), size_guidance={SCALARS: 0})
    if list(run.glob("events.out.tfevents.*")):
        accumulator.Reload()
    if "loss" not in accumulator.Tags()["scalars"]:
        raise DataError(f"{run} holds no log of a loss; give the folder of a run, such as runs/mnist-paper")
    logged = {event.step: event.value for event in accumulator.Scalars("loss")}
    steps = [step for step in sorted(logged) if math.isfinite(logged[step]) and logged[step] > 0]
    if len(steps) < 2:
        raise DataError(f"{run} holds a loss of {len(steps)} steps; a curve needs 2 or more")
    return Curve(np.array(steps), np.array([logged[step] for step in steps]))


def plot(curve: Curve, title: str) -> Image.Image:
    """Every step's loss in pale and their moving average in strong colour; the axis of losses is logarithmic."""
    picture = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13 * SCALE)
    first, last = int(curve.steps[0]), int(curve.steps[-1])
    low, high = math.log10(curve.losses.min()), math.log10(curve.losses.max())
    low, high = low - 0.02, max(high, low + 0.01) + 0.02

    def place(step: float, loss: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(loss)) / (high - low)
        return SCALE * across, SCALE * down

    for loss in ticks_of_losses(10**low, 10**high):
        x, y = place(first, loss)
        draw.line([(x, y), place(last, loss)], fill=GRID, width=SCALE)
        draw.text((x - 8 * SCALE, y), f"{loss:g}", fill=GREY, font=font, anchor="rm")
    for step in ticks_of_steps(first, last):
        x, y = place(step, 10**low)
        draw.text((x, y + 8 * SCALE), f"{step:,}", fill=GREY, font=font, anchor="mt")
    for losses, colour, width in ((curve.losses, PALE, 1), (curve.smooth, STRONG, 2)):
        points = [place(step, loss) for step, loss in zip(curve.steps.tolist(), losses.tolist(), strict=True)]
        draw.line(points, fill=colour, width=width * SCALE)
    draw.text((SCALE * LEFT, SCALE * TOP // 2), title, fill=INK, font=font, anchor="lm")
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def ticks_of_losses(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 and 5 times powers of ten) from low to high, and the two ends where there are none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [loss for loss in found if low <= loss <= high] or [float(f"{low:.2g}"), float(f"{high:.2g}")]


def ticks_of_steps(first: int, last: int) -> list[int]:
    """Multiples of a round number, some ``LINES`` of them."""
    rough = max(1, (last - first) / LINES)
    power = 10 ** math.floor(math.log10(rough))
    distance = max(1, next(round(digit * power) for digit in (1, 2, 5, 10) if digit * power >= rough))
    return list(range(-(-first // distance) * distance, last + 1, distance))
