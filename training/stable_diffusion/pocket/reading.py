"""What can be told of a scene, as classes: by a judge from its picture, by the text encoder from its sentence.

The judge tells it of the scene as a whole. The text encoder tells it of one quarter of the picture at a time, which is
how the UNet can use it: there it is one thing's, and no longer one of two.

Shapes: B batch, K classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.stable_diffusion.pocket.world import (
    COLOURS,
    CORNERS,
    KINDS,
    PAIRED_POSITIONS,
    POSITIONS,
    SIZES,
    Scene,
    Thing,
)

LAYOUTS: tuple[tuple[str, ...], ...] = (*((position,) for position in POSITIONS), *PAIRED_POSITIONS)
COLOUR_NAMES = tuple(COLOURS)
# What is read of a picture, each as one of its classes; the second thing and the size only where there are such.
SCENE_HEADS: dict[str, Sequence[object]] = {
    "layout": LAYOUTS,
    "background": COLOUR_NAMES,
    "kind_1": KINDS,
    "colour_1": COLOUR_NAMES,
    "kind_2": KINDS,
    "colour_2": COLOUR_NAMES,
    "size": SIZES,
}
# What is read of one quarter of it, and which that is.
QUARTERS = CORNERS
QUARTER_HEADS: dict[str, Sequence[object]] = {
    "quarter": QUARTERS,
    "layout": LAYOUTS,
    "background": COLOUR_NAMES,
    "kind": KINDS,
    "colour": COLOUR_NAMES,
    "size": SIZES,
}
ABSENT = -100  # a class that cross-entropy leaves out


class Heads(nn.ModuleDict):
    """A linear map to the classes of each head.

    Args:
        width: of the features that they read.
        heads: the classes of each by its name.
    """

    def __init__(self, width: int, heads: dict[str, Sequence[object]]) -> None:
        super().__init__({name: nn.Linear(width, len(classes)) for name, classes in heads.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(B, width) -> logits (B, K) by head."""
        return {name: head(features) for name, head in self.items()}


def scene_of(classes: dict[str, int]) -> Scene:
    """The scene that ``SCENE_HEADS``' classes describe."""
    positions = LAYOUTS[classes["layout"]]
    size = SIZES[classes["size"]] if len(positions) == 1 else None
    things = [
        Thing(KINDS[classes[f"kind_{n}"]], COLOUR_NAMES[classes[f"colour_{n}"]], size, position)
        for n, position in enumerate(positions, 1)
    ]
    return Scene(tuple(things), COLOUR_NAMES[classes["background"]])


def classes_of(scene: Scene) -> dict[str, int]:
    """What ``scene_of`` reads; ``ABSENT`` for heads that say nothing of such a scene."""
    classes = dict.fromkeys(SCENE_HEADS, ABSENT)
    classes["layout"] = LAYOUTS.index(tuple(thing.position for thing in scene.things))
    classes["background"] = COLOUR_NAMES.index(scene.background)
    for n, thing in enumerate(scene.things, 1):
        classes[f"kind_{n}"], classes[f"colour_{n}"] = KINDS.index(thing.kind), COLOUR_NAMES.index(thing.colour)
    if scene.things[0].size is not None:
        classes["size"] = SIZES.index(scene.things[0].size)
    return classes


def classes_of_quarter(scene: Scene, quarter: int) -> dict[str, int]:
    """The classes of ``QUARTER_HEADS``: kind and colour are those of the only thing, or of the nearer one of two.

    Args:
        scene: what there is.
        quarter: index in ``QUARTERS``.
    """
    classes = classes_of(scene)
    # The places of two things are named by sides, of which each quarter has two in its name.
    n = 2 if len(scene.things) == 2 and scene.things[1].position in QUARTERS[quarter].split() else 1
    classes |= {"quarter": quarter, "kind": classes[f"kind_{n}"], "colour": classes[f"colour_{n}"]}
    return {name: classes[name] for name in QUARTER_HEADS}


def head_losses(logits: dict[str, Tensor], classes: Sequence[dict[str, int]]) -> dict[str, Tensor]:
    """The cross-entropy of each head; 0 for one that says nothing of any of B scenes.

    Args:
        logits: (B, K) by head, float32.
        classes: what is true, by head, of each of B scenes.
    """
    losses = {}
    for name, each in logits.items():
        targets = torch.tensor([those[name] for those in classes], device=each.device)
        silent = bool((targets == ABSENT).all())  # a mean of nothing is no number; a gradient of 0 keeps its moments
        losses[name] = 0 * each.sum() if silent else F.cross_entropy(each, targets)
    return losses
