"""Negative prompts: what a model shows of its own accord, and whether it can be told not to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.classifier.agreement import Proportion
from training.stable_diffusion.pocket import captions
from training.stable_diffusion.pocket.evaluation.drawing import Drawer
from training.stable_diffusion.pocket.evaluation.requests import Request, draw_requests
from training.stable_diffusion.pocket.judge import Judge
from training.stable_diffusion.pocket.world import Scene

PROMPTS, PICTURES = 24, 16
MOSTLY = 0.5  # share of the pictures from which on a prompt shows an attribute


@dataclass(frozen=True)
class Trial:
    """A prompt that mostly shows something it does not ask for, and how often it still does when told not to.

    Attributes:
        prompt: what was asked for.
        attribute: its kind: "colour", "background", "position" or "size".
        value: what is mostly shown.
        without: how many pictures show it.
        negative_prompt: how it was said.
        told: how many pictures show it then.
    """

    prompt: str
    attribute: str
    value: str
    without: Proportion
    negative_prompt: str
    told: Proportion


def attributes(scene: Scene) -> dict[str, str | None]:
    """What a picture shows, as far as sentences about one thing may leave it open."""
    thing = scene.things[0]
    return {
        "colour": thing.colour,
        "background": scene.background,
        "position": thing.position,
        "size": thing.size,
    }


def open_attributes(request: Request) -> list[str]:
    """What a sentence about one thing leaves open."""
    said = request.caption.statement.things[0]
    told = attributes(request.scene) | {
        "colour": said.colour,
        "background": request.caption.statement.background,
        "position": said.position,
        "size": said.size,
    }
    return [name for name, value in told.items() if value is None]


def in_words(attribute: str, value: str) -> str:
    """How one says it alone."""
    if attribute == "background":
        return captions.TAGGED_BACKGROUND.format(captions.COLOURS.get(value, (value,))[0])
    tables: dict[str, Mapping[str, Sequence[str]]] = {
        "colour": captions.COLOURS,
        "position": captions.POSITIONS,
        "size": captions.SIZES,
    }
    return tables[attribute].get(value, (value,))[0]


def run_trials(drawer: Drawer, judge: Judge, folder: Path) -> list[Trial]:
    """Draw sentences that leave something open, see what comes mostly, and draw them with that as negative prompt."""
    candidates = [each for each in draw_requests(20 * PROMPTS, drawer.seed + 1) if len(each.scene.things) == 1]
    requests = [each for each in candidates if open_attributes(each)][:PROMPTS]
    prompts = [request.caption.text for request in requests]
    read = read_groups(drawer, judge, [{"prompt": prompt} for prompt in prompts], folder / "without")
    found = [
        (prompt, attribute, value)
        for request, prompt, scenes in zip(requests, prompts, read, strict=True)
        for attribute in open_attributes(request)
        for value, count in Counter(attributes(scene)[attribute] for scene in scenes).most_common(1)
        if value is not None and count >= MOSTLY * PICTURES
    ]
    if not found:
        return []
    lines = [{"prompt": prompt, "negative_prompt": in_words(*attribute)} for prompt, *attribute in found]
    told = read_groups(drawer, judge, lines, folder / "told")
    # Anew, from the same noise as those that are told: of what was chosen for its frequency some was chance.
    untold = read_groups(drawer, judge, [{"prompt": line["prompt"]} for line in lines], folder / "untold")
    trials = [
        Trial(
            prompt,
            attribute,
            value,
            Proportion(sum(attributes(scene)[attribute] == value for scene in before), PICTURES),
            in_words(attribute, value),
            Proportion(sum(attributes(scene)[attribute] == value for scene in after), PICTURES),
        )
        for (prompt, attribute, value), before, after in zip(found, untold, told, strict=True)
    ]
    return [trial for trial in trials if trial.without.rate >= MOSTLY]


def read_groups(drawer: Drawer, judge: Judge, lines: Sequence[dict[str, str]], folder: Path) -> list[list[Scene]]:
    """``PICTURES`` pictures of each line, read."""
    repeated = [line for line in lines for _ in range(PICTURES)]
    scenes = judge.read(drawer.draw(repeated, folder))
    return [scenes[begin : begin + PICTURES] for begin in range(0, len(scenes), PICTURES)]
