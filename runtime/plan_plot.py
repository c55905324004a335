"""A plan as a picture: how far the noise has fallen at each row, where it is guided, and what it weighs.

The three panels share the horizontal axis, which is the row. Everything is drawn twice as large and made smaller, so
that lines are smooth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from runtime.plan import Float64, Plan
from runtime.samplers.rows import COLUMN_NAMES

UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SCALE = 2
WIDTH, LEFT, RIGHT, TOP = 1200, 90, 30, 64
SIGMA_HEIGHT, GUIDANCE_HEIGHT, CELL_HEIGHT, GAP = 280, 60, 28, 58
TEXT, SMALL, HEADING = 13, 11, 18
NUMBER_WIDTH = 44  # pixels that a weight in digits needs
LABELS = 20  # at most so many rows are numbered

WHITE, INK, GREY, LINE = (255, 255, 255), (32, 36, 42), (120, 126, 134), (222, 226, 230)
BLUE, ORANGE = (38, 104, 170), (206, 98, 30)


class Panel(NamedTuple):
    """A part of the picture, in pixels before scaling: ``rows`` steps from left to right between top and bottom."""

    top: float
    bottom: float
    rows: int

    def x(self, row: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * row / self.rows

    def y(self, share: float) -> float:
        """Where a share of the height lies, counted from the bottom."""
        return self.bottom - (self.bottom - self.top) * share


class Canvas:
    """Pillow's drawing, in pixels before scaling."""

    def __init__(self, height: float) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, round(height) * SCALE), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float = 1) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle([left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1], fill=colour)

    def dot(self, x: float, y: float, colour: Colour, radius: float = 3) -> None:
        self._draw.ellipse(
            [(x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE], fill=colour
        )

    def text(self, x: float, y: float, words: str, anchor: str, colour: Colour = INK, size: int = TEXT) -> None:
        """``anchor`` is Pillow's: left, middle or right, then ascender, middle or baseline."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), words, fill=colour, font=font, anchor=anchor)

    def finished(self) -> UInt8:
        width, height = self.image.size
        return np.asarray(self.image.resize((width // SCALE, height // SCALE), Image.Resampling.BOX))


def plot(plan: Plan) -> UInt8:
    """Draw a plan, uint8 (H, W, 3)."""
    used = [column for column in range(len(COLUMN_NAMES)) if plan.weights[:, column].any()]
    sigma = Panel(TOP, TOP + SIGMA_HEIGHT, len(plan))
    guidance = Panel(sigma.bottom + GAP, sigma.bottom + GAP + GUIDANCE_HEIGHT, len(plan))
    weights = Panel(guidance.bottom + GAP, guidance.bottom + GAP + CELL_HEIGHT * len(used), len(plan))
    canvas = Canvas(weights.bottom + GAP)
    title = f"{plan.sampler}, {plan.num_inference_steps} steps, {len(plan)} rows, {plan.prediction_type}"
    canvas.text(LEFT, 24, title, "lm", size=HEADING)
    draw_sigmas(canvas, sigma, plan)
    draw_guidance(canvas, guidance, plan)
    draw_weights(canvas, weights, plan, used)
    draw_rows(canvas, weights, plan)
    return canvas.finished()


def sigmas(plan: Plan) -> Float64:
    """σ of x_0 .. x_N; infinite where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.abs(plan.noise_scales) / np.abs(plan.signal_scales)


def draw_sigmas(canvas: Canvas, panel: Panel, plan: Plan) -> None:
    """σ on a logarithmic axis; what is nothing or infinite lies on the edge."""
    values = sigmas(plan)
    shown = values[np.isfinite(values) & (values > 1e-6)]
    least, most = (math.floor(math.log10(shown.min())), math.ceil(math.log10(shown.max()))) if shown.size else (0, 1)
    most = max(most, least + 1)
    canvas.text(LEFT, panel.top - 8, "sigma, noise over signal (logarithmic)", "lb", GREY)
    for power in range(least, most + 1):
        y = panel.y((power - least) / (most - least))
        canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], LINE)
        canvas.text(LEFT - 10, y, f"{10.0**power:g}", "rm", GREY)
    with np.errstate(divide="ignore"):
        shares = np.clip((np.log10(values) - least) / (most - least), 0, 1)
    # A row stands in the middle of its step; the end of the last one has no row of its own.
    points = [(panel.x(min(i + 0.5, len(plan))), panel.y(share)) for i, share in enumerate(shares.tolist())]
    canvas.line(points, BLUE, 2)
    for point in points if len(plan) <= 100 else []:
        canvas.dot(*point, BLUE)
    if values[-1] == 0:
        canvas.text(points[-1][0] - 8, points[-1][1] - 8, "0", "rb", BLUE)


def draw_guidance(canvas: Canvas, panel: Panel, plan: Plan) -> None:
    words = "share of guidance"
    if plan.guidance_rescale:
        words += f", rescaled by {plan.guidance_rescale:g}"
    if plan.clip_sample is not None:
        words += f"; predicted image clipped to ±{plan.clip_sample:g}"
    canvas.text(LEFT, panel.top - 8, words, "lb", GREY)
    for share in (0, 1):
        canvas.line([(LEFT, panel.y(share)), (WIDTH - RIGHT, panel.y(share))], LINE)
        canvas.text(LEFT - 10, panel.y(share), str(share), "rm", GREY)
    for i, share in enumerate(plan.guidance.tolist()):
        if share:
            canvas.box(panel.x(i) + 0.5, panel.y(share), panel.x(i + 1) - 0.5, panel.y(0), BLUE)


def draw_weights(canvas: Canvas, panel: Panel, plan: Plan, used: list[int]) -> None:
    """Each weight as a cell: blue above nothing, orange below it, stronger the farther; in digits where they fit."""
    canvas.text(LEFT, panel.top - 8, "weights of samples x, outputs o and noise z (blue +, orange -)", "lb", GREY)
    largest = np.abs(plan.weights).max()
    with_numbers = panel.x(1) - panel.x(0) >= NUMBER_WIDTH
    for line, column in enumerate(used):
        top = panel.top + CELL_HEIGHT * line
        canvas.text(LEFT - 10, top + CELL_HEIGHT / 2, COLUMN_NAMES[column].replace("_", " "), "rm")
        for i, weight in enumerate(plan.weights[:, column].tolist()):
            strength = math.sqrt(abs(weight) / largest)
            canvas.box(
                panel.x(i), top, panel.x(i + 1), top + CELL_HEIGHT, tint(BLUE if weight > 0 else ORANGE, strength)
            )
            if with_numbers and weight:
                middle = (panel.x(i) + panel.x(i + 1)) / 2, top + CELL_HEIGHT / 2
                canvas.text(*middle, f"{weight:.3g}", "mm", WHITE if strength > 0.6 else INK, SMALL)
    for line in range(len(used) + 1):
        y = panel.top + CELL_HEIGHT * line
        canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], LINE)


def draw_rows(canvas: Canvas, panel: Panel, plan: Plan) -> None:
    """Numbers of rows, and the timesteps they tell the network."""
    step = -(-len(plan) // LABELS)
    for words, y in (("row", 12), ("timestep", 30)):
        canvas.text(LEFT - 10, panel.bottom + y, words, "rm", GREY)
    for i in range(0, len(plan), step):
        x = panel.x(i + 0.5)
        canvas.text(x, panel.bottom + 12, str(i), "mm", GREY, SMALL)
        canvas.text(x, panel.bottom + 30, f"{plan.timesteps[i]:.4g}", "mm", GREY, SMALL)


def tint(colour: Colour, strength: float) -> Colour:
    """A colour on white."""
    red, green, blue = (round(255 + (value - 255) * strength) for value in colour)
    return red, green, blue
