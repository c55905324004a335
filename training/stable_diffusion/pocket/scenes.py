"""Scenes by the batch; each batch depends on its seed, purpose and number alone."""

from __future__ import annotations

import numpy as np

from training.arrays import UInt8
from training.randomness import array_generator
from training.stable_diffusion.pocket.render import render
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import SHARE_OF_PAIRS, Scene, draw_scene


def draw_scenes(
    sources: Sources,
    seed: int,
    purpose: str,
    index: int,
    count: int,
    share_held_out: float = 0.0,
    share_of_pairs: float = SHARE_OF_PAIRS,
) -> tuple[list[Scene], UInt8]:
    """Scenes and pictures of them, uint8 (count, 64, 64, 3).

    Args:
        sources: the pictures that they are made of.
        seed, purpose, index: what they depend on, beside ``sources``.
        count: how many.
        share_held_out: share of scenes whose combinations are held out of training.
        share_of_pairs: share of scenes with two things.
    """
    draws = array_generator(seed, purpose, index)
    held_out = [share_held_out > 0 and draws.random() < share_held_out for _ in range(count)]
    scenes = [draw_scene(draws, each, share_of_pairs) for each in held_out]
    return scenes, np.stack([render(scene, sources, draws).pixels for scene in scenes])


def draw_pictures(sources: Sources, seed: int, purpose: str, index: int, count: int) -> UInt8:
    return draw_scenes(sources, seed, purpose, index, count)[1]
