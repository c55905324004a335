"""Negative prompts: what a model shows of its own accord, and whether it can be told not to.

Guidance strengthens what only the prompt says and weakens what only the negative prompt says. Against "in the centre"
nearly all of the difference is "a pink dress"; against "a pink dress in the centre" it is the place alone, and the
dress is hardly strengthened. Both ways of saying it are tried, and it is counted what goes and what stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.classifier.agreement import Proportion
from training.randomness import array_generator
from training.stable_diffusion.pocket import captions
from training.stable_diffusion.pocket.captions import Caption, Statement
from training.stable_diffusion.pocket.evaluation.drawing import Drawer
from training.stable_diffusion.pocket.evaluation.facts import check
from training.stable_diffusion.pocket.evaluation.requests import Request, draw_requests
from training.stable_diffusion.pocket.judge import Judge
from training.stable_diffusion.pocket.world import Scene

PROMPTS, PICTURES = 24, 16
MOSTLY = 0.5  # share of the pictures from which on a prompt shows an attribute


@dataclass(frozen=True)
class Outcome:
    """What the pictures of a prompt show.

    Attributes:
        shown: how many show what was not asked for.
        kept: how many of all facts that the prompt states hold.
    """

    shown: Proportion
    kept: Proportion

    def to_json(self) -> dict[str, object]:
        return {"shown": self.shown.to_json(), "kept": self.kept.to_json()}


@dataclass(frozen=True)
class Trial:
    """A prompt that mostly shows something it does not ask for, and whether it can be told not to.

    Attributes:
        prompt: what was asked for.
        attribute: its kind: "colour", "background", "position" or "size".
        value: what is mostly shown.
        negative_prompt: all that the prompt says, and this.
        word: this alone.
        without, told, told_by_word: what came with no negative prompt, with that one, and with the word as one.
    """

    prompt: str
    attribute: str
    value: str
    negative_prompt: str
    word: str
    without: Outcome
    told: Outcome
    told_by_word: Outcome


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
    outcomes: list[list[Outcome]] = []
    for name, negative_prompts in negatives.items():
        lines = [
            {"prompt": caption.text, "negative_prompt": negative_prompt}
            for (caption, _, _), negative_prompt in zip(found, negative_prompts, strict=True)
        ]
        groups = read_groups(drawer, judge, lines, folder / name)
        outcomes.append([outcome(scenes, *each) for each, scenes in zip(found, groups, strict=True)])
    return [
        Trial(caption.text, attribute, value, *rest)
        for (caption, attribute, value), *rest in zip(found, sentences, words, *outcomes, strict=True)
    ]


def outcome(scenes: Sequence[Scene], caption: Caption, attribute: str, value: str) -> Outcome:
    """What was read of the pictures of a sentence."""
    facts = [fact.holds for scene in scenes for fact in check(caption.statement, scene)]
    shown = sum(attributes(scene)[attribute] == value for scene in scenes)
    return Outcome(Proportion(shown, len(scenes)), Proportion(sum(facts), len(facts)))


def read_groups(drawer: Drawer, judge: Judge, lines: Sequence[dict[str, str]], folder: Path) -> list[list[Scene]]:
    """``PICTURES`` pictures of each line, read."""
    repeated = [line for line in lines for _ in range(PICTURES)]
    scenes = judge.read(drawer.draw(repeated, folder))
    return [scenes[begin : begin + PICTURES] for begin in range(0, len(scenes), PICTURES)]
