"""The sentences that a model is asked to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.randomness import array_generator
from training.stable_diffusion.pocket.captions import Caption, Statement, describe
from training.stable_diffusion.pocket.world import Scene, draw_scene

PURPOSE = "evaluation"  # other numbers than those of training


@dataclass(frozen=True)
class Request:
    """A sentence, what it says, and the scene it was made for.

    Attributes:
        caption: the sentence and its facts.
        scene: one of the scenes that it describes.
        held_out: whether the scene's combinations of kind, colour and background were kept from training.
    """

    caption: Caption
    scene: Scene
    held_out: bool


def draw_requests(count: int, seed: int) -> list[Request]:
    """Requests, every other one of held-out combinations; the same seed gives the same.

    Sentences of held-out scenes that name no such combination (they leave out the kind, a colour or the background) ask
    for nothing new, and are drawn again.
    """
    draws = array_generator(seed, PURPOSE, 0)
    return [draw_request(draws, held_out=bool(k % 2)) for k in range(count)]


def draw_request(draws: np.random.Generator, held_out: bool) -> Request:
    while True:
        scene = draw_scene(draws, held_out)
        caption = describe(scene, draws)
        if caption.statement.things and (not held_out or names_a_combination(caption.statement)):
            return Request(caption, scene, held_out)


def names_a_combination(statement: Statement) -> bool:
    """Whether kind, colour and background are all said of some thing."""
    return statement.background is not None and any(said.kind and said.colour for said in statement.things)
