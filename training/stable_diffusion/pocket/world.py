"""The world of the pocket model: which scenes there are, and how one is drawn by lot.

A scene is one thing, or two of them, on a plain background. Things are the garments of Fashion-MNIST and the digits of
MNIST. Two classes of garments are left out, since what cannot be told apart cannot be asked for: "shirt", whose
pictures look like those of T-shirts, pullovers and coats, and "coat", of whose real pictures, at these sizes, a judge
took 21 in a hundred for something else, mostly a pullover.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "test"]

# Kind of thing -> its label in its data set.
GARMENTS = {
    "t-shirt": 0,
    "trousers": 1,
    "pullover": 2,
    "dress": 3,
    "sandal": 5,
    "sneaker": 7,
    "bag": 8,
    "ankle boot": 9,
}
DIGITS = {
    name: label
    for label, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    )
}
KINDS = (*GARMENTS, *DIGITS)

# The eleven basic colour terms of English (Berlin & Kay 1969), in RGB.
COLOURS = {
    "black": (28, 28, 32),
    "white": (246, 246, 246),
    "grey": (136, 138, 142),
    "red": (214, 38, 44),
    "orange": (246, 138, 28),
    "yellow": (250, 218, 56),
    "green": (44, 158, 74),
    "blue": (40, 86, 214),
    "purple": (132, 62, 176),
    "pink": (246, 150, 190),
    "brown": (122, 74, 38),
}

SIZES = ("small", "medium", "large")
SIDES = ("left", "right", "top", "bottom")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
POSITIONS = ("centre", *SIDES, *CORNERS)
PAIRED_POSITIONS = (("left", "right"), ("top", "bottom"))

SHARE_OF_PAIRS = 0.3
SHARE_HELD_OUT = 0.15
SIZE_PROBABILITIES = (0.2, 0.4, 0.4)
SHARE_CENTRED = 0.35  # of the things that are not large; large ones have no room but in the centre


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
        kind: one of ``KINDS``.
        colour: one of ``COLOURS``.
        size: one of ``SIZES``; None for either of two things, which are both as large as fits.
        position: one of ``POSITIONS``.
    """

    kind: str
    colour: str
    size: str | None
    position: str


@dataclass(frozen=True)
class Scene:
    """One or two things and the colour behind them."""

    things: tuple[Thing, ...]
    background: str


def is_held_out(kind: str, colour: str, background: str) -> bool:
    """Whether this combination is kept from training, to see later whether it can be imagined."""
    digest = hashlib.sha256(f"{kind}/{colour}/{background}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < SHARE_HELD_OUT * 2**64


def draw_scene(draws: np.random.Generator, held_out: bool = False, share_of_pairs: float = SHARE_OF_PAIRS) -> Scene:
    """Draw a scene.

    Args:
        draws: where chance comes from.
        held_out: draw all things from the combinations that are held out of training; else from the others.
        share_of_pairs: probability of two things.
    """
    background = choice(draws, tuple(COLOURS))
    if draws.random() < share_of_pairs:
        positions = PAIRED_POSITIONS[draws.integers(len(PAIRED_POSITIONS))]
        things = [(*draw_combination(draws, background, held_out), None, position) for position in positions]
        return Scene(tuple(Thing(*thing) for thing in things), background)
    size = SIZES[draws.choice(len(SIZES), p=SIZE_PROBABILITIES)]
    centred = size == "large" or draws.random() < SHARE_CENTRED
    position = "centre" if centred else choice(draws, POSITIONS[1:])
    return Scene((Thing(*draw_combination(draws, background, held_out), size, position),), background)


def draw_combination(draws: np.random.Generator, background: str, held_out: bool) -> tuple[str, str]:
    """A kind and a colour that may stand on this background and can be seen on it."""
    while True:
        kind, colour = choice(draws, KINDS), choice(draws, tuple(COLOURS))
        if colour != background and is_held_out(kind, colour, background) == held_out:
            return kind, colour


def choice(draws: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[draws.integers(len(names))]
