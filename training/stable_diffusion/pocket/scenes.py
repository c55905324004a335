"""Scenes by the batch; each batch depends on its seed, purpose and number alone."""

from __future__ import annotations

import numpy as np

from training.arrays import UInt8
from training.randomness import array_generator
from training.stable_diffusion.pocket.render import render
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import Scene, draw_scene


def draw_scenes(sources: Sources, seed: int, purpose: str, index: int, count: int) -> tuple[list[Scene], UInt8]:
    """Scenes without held-out combinations, and pictures of them, uint8 (count, 64, 64, 3)."""
    draws = array_generator(seed, purpose, index)
    scenes = [draw_scene(draws) for _ in range(count)]
    return scenes, np.stack([render(scene, sources, draws).pixels for scene in scenes])


def draw_pictures(sources: Sources, seed: int, purpose: str, index: int, count: int) -> UInt8:
    return draw_scenes(sources, seed, purpose, index, count)[1]
