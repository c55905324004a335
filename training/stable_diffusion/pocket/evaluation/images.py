"""What the VAE keeps of real pictures, and what image to image keeps and changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import atomic
from training.arrays import UInt8
from training.classifier.agreement import Proportion
from training.evaluate.bootstrap import Figure, bootstrap
from training.evaluate.frechet import Float64
from training.evaluate.pictures import png
from training.randomness import array_generator
from training.stable_diffusion.pocket.captions import Said, noun_phrase, with_background
from training.stable_diffusion.pocket.evaluation.drawing import Drawer
from training.stable_diffusion.pocket.judge import Judge
from training.stable_diffusion.pocket.render import Picture, render
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import COLOURS, Scene, choice, draw_scene

REBUILT, RECOLOURED = 256, 256
STRENGTH = 0.6
INSIDE = 0.5  # alpha from which on a pixel belongs to a thing


@dataclass(frozen=True)
class Rebuilt:
    """Real pictures and what the VAE makes of them, and how far the things' insides differ.

    Attributes:
        real, rebuilt: uint8 (N, 64, 64, 3).
        psnr: 10 log10(255² / mean squared error) in dB, the mean over all pixels of all things, with the interval that
            other pictures would have brought it into.
    """

    real: UInt8
    rebuilt: UInt8
    psnr: Figure


@dataclass(frozen=True)
class Recoloured:
    """Real pictures, drawn again as of another colour; both uint8 (N, 64, 64, 3), and how many kept or changed what.

    Attributes:
        real, drawn: before and after.
        prompts: what was asked for.
        counts: "thing", "background", "position" and "size", which must stay, and "colour", which must become what is
            asked.
    """

    real: UInt8
    drawn: UInt8
    prompts: tuple[str, ...]
    counts: Mapping[str, Proportion]


def rebuild(drawer: Drawer, sources: Sources, folder: Path) -> Rebuilt:
    """Encode and decode scenes of real pictures."""
    draws = array_generator(drawer.seed, "rebuilt", 0)
    pictures = [render(draw_scene(draws), sources, draws) for _ in range(REBUILT)]
    files = write_pictures(pictures, folder / "real")
    drawn = drawer.draw([{"prompt": "", "image": str(file), "strength": 0} for file in files], folder)
    real = np.stack([picture.pixels for picture in pictures])
    inside = np.stack([picture.alpha for picture in pictures]) > INSIDE
    errors = np.square(drawn.astype(np.float64) - real) * inside[..., None]
    return Rebuilt(real, drawn, psnr(errors.sum((1, 2, 3)), 3 * inside.sum((1, 2)), draws))


def psnr(errors: Float64, counts: Float64, draws: np.random.Generator) -> Figure:
    """In dB, from the sum of squared errors and the number of values of each picture, (N,) both."""

    def decibels(chosen: Float64) -> float:
        return 10 * math.log10(255**2 * float(chosen @ counts) / max(float(chosen @ errors), 1.0))

    return bootstrap(decibels, (np.zeros(len(errors), np.int64),), draws)


def recolour(drawer: Drawer, judge: Judge, sources: Sources, folder: Path) -> Recoloured:
    """Begin at scenes of one real thing and ask for it in another colour."""
    draws = array_generator(drawer.seed, "recoloured", 0)
    before = [single_thing(draws) for _ in range(RECOLOURED)]
    pictures = [render(scene, sources, draws) for scene in before]
    after = [in_another_colour(scene, draws) for scene in before]
    prompts = [plain_sentence(scene, draws) for scene in after]
    files = write_pictures(pictures, folder / "real")
    lines: list[dict[str, Any]] = [
        {"prompt": prompt, "image": str(file), "strength": STRENGTH}
        for prompt, file in zip(prompts, files, strict=True)
    ]
    drawn = drawer.draw(lines, folder)
    pairs = list(zip(after, judge.read(drawn), strict=True))
    holds = {
        "thing": [a.things[0].kind == b.things[0].kind for a, b in pairs],
        "background": [a.background == b.background for a, b in pairs],
        "position": [a.things[0].position == b.things[0].position for a, b in pairs],
        "size": [a.things[0].size == b.things[0].size for a, b in pairs],
        "colour": [a.things[0].colour == b.things[0].colour for a, b in pairs],
    }
    counts = {name: Proportion(sum(each), len(each)) for name, each in holds.items()}
    return Recoloured(np.stack([picture.pixels for picture in pictures]), drawn, tuple(prompts), counts)


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """As numbered files; their absolute paths."""
    atomic.make_folder(folder)
    files = [folder.resolve() / f"{number:05d}.png" for number in range(1, len(pictures) + 1)]
    for file, picture in zip(files, pictures, strict=True):
        atomic.write(file, png(Image.fromarray(picture.pixels)))
    return files


def single_thing(draws: np.random.Generator) -> Scene:
    while len((scene := draw_scene(draws)).things) > 1:
        pass
    return scene


def in_another_colour(scene: Scene, draws: np.random.Generator) -> Scene:
    """The same scene with its thing in a colour that is neither its own nor the background's."""
    others = tuple(colour for colour in COLOURS if colour not in (scene.things[0].colour, scene.background))
    return replace(scene, things=(replace(scene.things[0], colour=choice(draws, others)),))


def plain_sentence(scene: Scene, draws: np.random.Generator) -> str:
    """Kind, colour and background of one thing."""
    thing = scene.things[0]
    return with_background(noun_phrase(Said(thing.kind, thing.colour), draws), scene.background, draws, may_lead=False)
