"""Negative prompts: what a model shows of its own accord, and whether it can be told not to.

Guidance leads along the difference between two predictions, of the prompt and of the negative prompt, so away from all
that the negative prompt leaves open too. "In the centre" against "a pink dress" differs more in the dress than in the
place; "a pink dress in the centre" differs in the place alone. Both ways of saying it are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.classifier.agreement import Proportion
from training.randomness import array_generator
from training.stable_diffusion.pocket import captions
from training.stable_diffusion.pocket.captions import Statement
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
        negative_prompt: all that the prompt says, and this.
        told: how many pictures show it then.
        word: this alone.
        told_by_word: how many pictures show it with that as negative prompt.
    """

    prompt: str
    attribute: str
    value: str
    without: Proportion
    negative_prompt: str
    told: Proportion
    word: str
    told_by_word: Proportion


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
    told = {
        "colour": said.colour,
        "background": request.caption.statement.background,
        # Large things have no room but in the centre.
        "position": "centre" if said.size == "large" else said.position,
        "size": said.size,
    }
    return [name for name, value in told.items() if value is None]


def with_attribute(statement: Statement, attribute: str, value: str) -> Statement:
    """What is said of one thing, and this too."""
    if attribute == "background":
        return replace(statement, background=value)
    return replace(statement, things=(replace(statement.things[0], **{attribute: value}),))


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
    read = read_groups(drawer, judge, [{"prompt": each.caption.text} for each in requests], folder / "without")
    found = [
        (request.caption, attribute, value)
        for request, scenes in zip(requests, read, strict=True)
        for attribute in open_attributes(request)
        for value, count in Counter(attributes(scene)[attribute] for scene in scenes).most_common(1)
        if value is not None and count >= MOSTLY * PICTURES
    ]
    if not found:
        return []
    draws = array_generator(drawer.seed, "negatives", 0)
    sentences = [captions.sentence(with_attribute(caption.statement, *what), draws) for caption, *what in found]
    words = [in_words(attribute, value) for _, attribute, value in found]
    # Without one once more, from the same noise as with one: of what was chosen for its frequency some was chance.
    negatives = {"untold": [""] * len(found), "told": sentences, "told-by-word": words}
    shown: list[list[Proportion]] = []
    for name, negative_prompts in negatives.items():
        lines = [
            {"prompt": caption.text, "negative_prompt": negative_prompt}
            for (caption, _, _), negative_prompt in zip(found, negative_prompts, strict=True)
        ]
        groups = read_groups(drawer, judge, lines, folder / name)
        shown.append([showing(scenes, *what) for (_, *what), scenes in zip(found, groups, strict=True)])
    trials = [
        Trial(caption.text, attribute, value, without, sentence, told, word, told_by_word)
        for (caption, attribute, value), sentence, word, without, told, told_by_word in zip(
            found, sentences, words, *shown, strict=True
        )
    ]
    return [trial for trial in trials if trial.without.rate >= MOSTLY]


def showing(scenes: Sequence[Scene], attribute: str, value: str) -> Proportion:
    """How many pictures show it."""
    return Proportion(sum(attributes(scene)[attribute] == value for scene in scenes), len(scenes))


def read_groups(drawer: Drawer, judge: Judge, lines: Sequence[dict[str, str]], folder: Path) -> list[list[Scene]]:
    """``PICTURES`` pictures of each line, read."""
    repeated = [line for line in lines for _ in range(PICTURES)]
    scenes = judge.read(drawer.draw(repeated, folder))
    return [scenes[begin : begin + PICTURES] for begin in range(0, len(scenes), PICTURES)]
