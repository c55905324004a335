"""What was found, as a table, as JSON and as pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import atomic
from training.arrays import UInt8
from training.classifier.agreement import Proportion
from training.evaluate.bootstrap import Figure, bootstrap
from training.evaluate.neighbours import median
from training.evaluate.pictures import png
from training.stable_diffusion.pocket.evaluation.facts import check, count
from training.stable_diffusion.pocket.evaluation.images import Rebuilt, Recoloured
from training.stable_diffusion.pocket.evaluation.negatives import Trial
from training.stable_diffusion.pocket.evaluation.neighbours import Neighbour
from training.stable_diffusion.pocket.evaluation.requests import Request
from training.stable_diffusion.pocket.preview import sheet
from training.stable_diffusion.pocket.world import Scene

SHOWN = 48  # pictures on a sheet
NEIGHBOURS_SHOWN = 24
ABSENT = "–"
WAYS = ("without", "told", "told_by_word")  # of a trial of negative prompts


@dataclass(frozen=True)
class Prompted:
    """Requests and what was read of their pictures.

    Attributes:
        requests: (N,).
        pictures: uint8 (N, 64, 64, 3).
        read: of the pictures, (N,).
        read_of_real: of pictures of the same scenes, rendered from real test images: what the judge makes of what is
            right, (N,).
    """

    requests: Sequence[Request]
    pictures: UInt8
    read: Sequence[Scene]
    read_of_real: Sequence[Scene]

    def counts(self) -> dict[str, dict[str, Proportion]]:
        """Facts that hold by group: "all", "known" combinations, "held out" ones, and of "real" pictures."""
        known = [not request.held_out for request in self.requests]
        held_out = [request.held_out for request in self.requests]
        everything = [True] * len(known)
        return {
            "all": self.counted(self.read, everything),
            "known": self.counted(self.read, known),
            "held out": self.counted(self.read, held_out),
            "real": self.counted(self.read_of_real, everything),
        }

    def counted(self, read: Sequence[Scene], chosen: Sequence[bool]) -> dict[str, Proportion]:
        triples = zip(self.requests, read, chosen, strict=True)
        return count(
            fact for request, scene, taken in triples if taken for fact in check(request.caption.statement, scene)
        )

    def wrong(self) -> list[int]:
        """Which pictures do not show all that was asked for."""
        return [
            k
            for k, (request, scene) in enumerate(zip(self.requests, self.read, strict=True))
            if not all(fact.holds for fact in check(request.caption.statement, scene))
        ]


@dataclass(frozen=True)
class Findings:
    """Everything that is reported of one bundle."""

    prompted: Prompted
    trials: Sequence[Trial]
    rebuilt: Rebuilt
    recoloured: Recoloured
    neighbours: Sequence[Neighbour]
    neighbours_of_real: Sequence[Neighbour]

    @cached_property
    def negatives(self) -> dict[str, tuple[Figure, Figure] | None]:
        """Rates of what was not asked for and of what was: "without" a negative prompt, by a sentence, by a word."""
        outcomes = {way: [getattr(trial, way) for trial in self.trials] for way in WAYS}
        return {
            way: (rate([each.shown for each in found]), rate([each.kept for each in found])) if found else None
            for way, found in outcomes.items()
        }

    @cached_property
    def distance(self) -> Figure | None:
        """How far the training picture nearest to what was drawn is."""
        return median_distance(self.neighbours)

    @cached_property
    def distance_of_real(self) -> Figure | None:
        """And that nearest to a real test picture."""
        return median_distance(self.neighbours_of_real)

    def to_json(self) -> dict[str, Any]:
        groups = self.prompted.counts()
        trials = [
            {name: getattr(t, name) for name in ("prompt", "attribute", "value", "negative_prompt", "word")}
            | {name: getattr(t, name).to_json() for name in WAYS}
            for t in self.trials
        ]
        return {
            "facts": {group: {name: p.to_json() for name, p in facts.items()} for group, facts in groups.items()},
            "negative_prompts": {
                way: {"shown": found[0].to_json(), "kept": found[1].to_json()} if found else None
                for way, found in self.negatives.items()
            }
            | {"trials": trials},
            "vae_psnr_db": self.rebuilt.psnr.to_json(),
            "image_to_image": {name: p.to_json() for name, p in self.recoloured.counts.items()},
            "nearest_training_pictures": {
                name: found.to_json() if found else None
                for name, found in (
                    ("median_distance", self.distance),
                    ("median_distance_of_real_test_pictures", self.distance_of_real),
                )
            },
        }

    def table(self) -> str:
        """For people, in Markdown."""
        groups = self.prompted.counts()
        lines = ["| fact | all | known combinations | held-out combinations | real pictures |", "|---|---|---|---|---|"]
        for name in groups["all"]:
            cells = [percent(facts[name]) if name in facts else ABSENT for facts in groups.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        without, told, by_word = map(shown_and_kept, self.negatives.values())
        kept = ", ".join(f"{name} {percent(each)}" for name, each in self.recoloured.counts.items())
        return "\n".join(
            [
                *lines,
                "",
                f"- negative prompts: {len(self.trials)} attributes are mostly shown unasked; shown in {without}; "
                f"told not to by a sentence, in {told}; by the word alone, in {by_word}",
                f"- the VAE rebuilds the inside of things at {self.rebuilt.psnr.in_words(1)} dB",
                f"- image to image in another colour: {kept}",
                f"- nearest training pictures: median distance {in_words(self.distance)}, of real test pictures "
                f"{in_words(self.distance_of_real)}",
            ]
        )

    def write_pictures(self, folder: Path) -> None:
        """Sheets: the first pictures, the first that are wrong, and what the other questions were about."""
        prompted, recoloured = self.prompted, self.recoloured
        texts = [request.caption.text for request in prompted.requests]
        wrong = prompted.wrong()[:SHOWN]
        pairs = np.concatenate([recoloured.real, recoloured.drawn], axis=2)[: SHOWN // 2]
        sheets = {
            "prompts": sheet(prompted.pictures[:SHOWN], texts[:SHOWN]),
            "recoloured": sheet(pairs, recoloured.prompts[: len(pairs)]),
            "rebuilt": rows_of(np.stack([self.rebuilt.real, self.rebuilt.rebuilt], axis=1)[: SHOWN // 2]),
        }
        if wrong:
            sheets["wrong"] = sheet(prompted.pictures[wrong], [texts[k] for k in wrong])
        if self.neighbours:
            closest = sorted(self.neighbours, key=lambda each: each.distance)[:NEIGHBOURS_SHOWN]
            shown = [(each.picture, each.nearest) for each in closest]
            sheets["neighbours"] = rows_of((255 * np.array(shown)[..., None]).astype(np.uint8))
        for name, pixels in sheets.items():
            atomic.write(folder / f"{name}.png", png(Image.fromarray(pixels.squeeze())))


def percent(proportion: Proportion) -> str:
    """A rate with its 95 % interval."""
    low, high = proportion.interval()
    return f"{100 * proportion.rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def rate(proportions: Sequence[Proportion]) -> Figure:
    """Of all of them together, with the interval that other trials would have brought it into."""
    hits, counts = (np.array([getattr(each, name) for each in proportions]) for name in ("hits", "count"))
    return bootstrap(
        lambda chosen: float(chosen @ hits) / float(chosen @ counts),
        (np.zeros(len(hits), np.int64),),
        np.random.default_rng(0),
        bounds=(0, 1),
    )


def shown_and_kept(found: tuple[Figure, Figure] | None) -> str:
    if found is None:
        return ABSENT
    shown, kept = (figure.in_words(1, factor=100) for figure in found)
    return f"{shown} %, with {kept} % of what was asked for"


def median_distance(neighbours: Sequence[Neighbour]) -> Figure | None:
    """With its interval; None of none."""
    if not neighbours:
        return None
    distances = np.array([each.distance for each in neighbours])
    draws = np.random.default_rng(0)
    return bootstrap(lambda counts: median(distances, counts), (np.zeros(len(distances), np.int64),), draws)


def in_words(figure: Figure | None) -> str:
    return figure.in_words(3) if figure else ABSENT


def rows_of(columns: UInt8, in_a_row: int = 12) -> UInt8:
    """Pairs of pictures, uint8 (N, 2, H, W, C), the second of each below the first."""
    count, _, height, width, channels = columns.shape
    rows = -(-count // in_a_row)
    page = np.zeros((rows * 2 * height, in_a_row * width, channels), np.uint8)
    for k, column in enumerate(columns):
        top, left = 2 * height * (k // in_a_row), width * (k % in_a_row)
        page[top : top + 2 * height, left : left + width] = column.reshape(2 * height, width, channels)
    return page
