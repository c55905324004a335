"""Sentences about scenes: true ones, in many words and orders, that leave out whatever they like.

What a sentence says is decided first, as a ``Statement`` of facts; then it is put into words. All words stand in the
tables below, which is how the model's vocabulary is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from training.stable_diffusion.pocket import world
from training.stable_diffusion.pocket.world import Scene, Thing

Choice = TypeVar("Choice")

# What stands before the adjectives and what after them; "a" becomes "an" where it must.
NOUNS = {
    "t-shirt": (("a", "t-shirt"), ("a", "t-shirt"), ("a", "tee")),
    "trousers": (("", "trousers"), ("", "trousers"), ("a pair of", "trousers"), ("", "pants")),
    "pullover": (("a", "pullover"), ("a", "pullover"), ("a", "sweater"), ("a", "jumper")),
    "dress": (("a", "dress"),),
    "sandal": (("a", "sandal"),),
    "sneaker": (("a", "sneaker"), ("a", "sneaker"), ("a", "trainer")),
    "bag": (("a", "bag"), ("a", "bag"), ("a", "handbag")),
    "ankle boot": (("an", "ankle boot"), ("a", "boot")),
}
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
for value, numeral in enumerate(NUMERALS):
    digit, number = ("the", f"digit {numeral}"), ("the", f"number {numeral}")
    NOUNS[numeral] = (digit, digit, ("a", numeral), number, ("the", f"digit {value}"), ("a", str(value)))
UNNAMED = (("a", "thing"), ("", "something"))

COLOURS = {"grey": ("grey", "grey", "gray"), "purple": ("purple", "purple", "violet")}  # the others have one word
SIZES = {"small": ("small", "small", "little", "tiny"), "medium": ("medium-sized",), "large": ("large", "large", "big")}
POSITIONS = {
    "centre": ("in the centre", "in the center", "in the middle"),
    "left": ("on the left", "on the left", "on the left side"),
    "right": ("on the right", "on the right", "on the right side"),
    "top": ("at the top", "at the top", "in the upper part"),
    "bottom": ("at the bottom", "at the bottom", "in the lower part"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right corner"),
}
BACKGROUNDS = ("on a {} background",) * 4 + ("on {}",) * 2 + ("against a {} background", "in front of a {} background")
BACKGROUNDS_FIRST = ("on a {} background, {}", "a {} background with {}", "against a {} background, {}")
PICTURES = ("a picture of", "a photo of", "an image of")
# By the position of the thing that is named first.
RELATIONS = {
    "left": ("{} to the left of {}", "{} left of {}"),
    "right": ("{} to the right of {}", "{} right of {}"),
    "top": ("{} above {}", "{} over {}"),
    "bottom": ("{} below {}", "{} under {}"),
}
JOINED = ("{} and {}", "{} and {}", "{} next to {}", "{} with {}")
TAGGED_BACKGROUND = "{} background"

SAID_COLOUR, SAID_BACKGROUND, SAID_SIZE, SAID_POSITION, SAID_RELATION = 0.88, 0.8, 0.45, 0.5, 0.7
SHARE_OF_TAGS = 0.06  # facts with commas between them
SHARE_OF_FRAGMENTS = 0.06  # a single fact, as people give them in negative prompts
SHARE_OF_PICTURES = 0.08  # sentences that begin "a picture of"


@dataclass(frozen=True)
class Said:
    """What a sentence says of a thing; None is what it leaves open.

    ``relation`` is the thing's place beside or above the other thing, ``position`` its place in the picture.
    """

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    position: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class Statement:
    """What a sentence says: of each thing that it speaks of, in its own order, and of the background."""

    things: tuple[Said, ...]
    background: str | None = None


@dataclass(frozen=True)
class Caption:
    """A sentence and the facts in it."""

    text: str
    statement: Statement


def describe(scene: Scene, draws: np.random.Generator) -> Caption:
    """A sentence about a scene, drawn by lot."""
    if len(scene.things) == 2:
        return describe_two(scene, draws)
    if draws.random() < SHARE_OF_FRAGMENTS:
        return fragment(scene, draws)
    said, background = say(scene.things[0], draws), say_background(scene, draws)
    statement = Statement((said,), background)
    if draws.random() < SHARE_OF_TAGS:
        return Caption(tags(statement, draws), statement)
    return Caption(sentence(statement, draws), statement)


def sentence(statement: Statement, draws: np.random.Generator) -> str:
    """What is said of one thing and of the background, in words."""
    said, background = statement.things[0], statement.background
    place = pick(draws, POSITIONS[said.position]) if said.position else ""
    thing = noun_phrase(said, draws)
    if place and draws.random() < 0.2:
        return with_background(f"{place}, {thing}", background, draws, may_lead=False)
    if place and draws.random() < 0.3:  # the place comes last of all
        return f"{with_background(thing, background, draws, may_lead=False)} {place}"
    return with_background(f"{thing} {place}".strip(), background, draws)


def describe_two(scene: Scene, draws: np.random.Generator) -> Caption:
    """A sentence about two things: where they are by themselves, to each other, or nothing of it."""
    order = draws.permutation(2)
    things = [scene.things[i] for i in order]
    said = [replace(say(thing, draws), position=None) for thing in things]
    background = say_background(scene, draws)
    if draws.random() >= SAID_RELATION:
        text = pick(draws, JOINED).format(*(noun_phrase(each, draws) for each in said))
    elif draws.random() < 0.5:
        said = [replace(each, position=thing.position) for each, thing in zip(said, things, strict=True)]
        phrases = [f"{noun_phrase(each, draws)} {pick(draws, POSITIONS[str(each.position)])}" for each in said]
        text = " and ".join(phrases)
    else:
        said = [replace(each, relation=thing.position) for each, thing in zip(said, things, strict=True)]
        text = pick(draws, RELATIONS[things[0].position]).format(*(noun_phrase(each, draws) for each in said))
    return Caption(with_background(text, background, draws), Statement(tuple(said), background))


def say(thing: Thing, draws: np.random.Generator) -> Said:
    """Which facts about a thing a sentence will hold; its kind always."""
    colour, size, position = draws.random(3)
    return Said(
        kind=thing.kind,
        colour=thing.colour if colour < SAID_COLOUR else None,
        size=thing.size if size < SAID_SIZE else None,
        position=thing.position if position < SAID_POSITION else None,
    )


def say_background(scene: Scene, draws: np.random.Generator) -> str | None:
    return scene.background if draws.random() < SAID_BACKGROUND else None


def fragment(scene: Scene, draws: np.random.Generator) -> Caption:
    """One fact alone."""
    thing = scene.things[0]
    facts = [
        Statement((Said(kind=thing.kind),)),
        Statement((Said(colour=thing.colour),)),
        Statement((Said(position=thing.position),)),
        Statement((), scene.background),
        Statement((Said(size=thing.size),)),
    ]
    statement = facts[draws.integers(len(facts))]
    said = statement.things[0] if statement.things else None
    if said is not None and (said.colour or said.size) and draws.random() < 0.5:
        return Caption(noun_phrase(said, draws), statement)
    return Caption(tags(statement, draws), statement)


def tags(statement: Statement, draws: np.random.Generator) -> str:
    """The facts with commas between them, in any order; a colour stays with the kind that it belongs to."""
    parts = []
    for said in statement.things:
        colour = colour_word(said.colour, draws) if said.colour else ""
        noun = pick(draws, NOUNS[said.kind])[1] if said.kind else ""
        parts.append(f"{colour} {noun}".strip())
        parts += [pick(draws, SIZES[said.size])] if said.size else []
        parts += [pick(draws, POSITIONS[said.position])] if said.position else []
    if statement.background:
        parts.append(TAGGED_BACKGROUND.format(colour_word(statement.background, draws)))
    parts = [part for part in parts if part]
    return ", ".join(parts[i] for i in draws.permutation(len(parts)))


def noun_phrase(said: Said, draws: np.random.Generator) -> str:
    """A thing with what is said of it but its place: "a small red sneaker", "the digit seven in yellow"."""
    before, noun = pick(draws, NOUNS[said.kind] if said.kind else UNNAMED)
    size = pick(draws, SIZES[said.size]) if said.size else ""
    colour = colour_word(said.colour, draws) if said.colour else ""
    if noun == "something":
        return " ".join(filter(None, (noun, size, colour)))
    if colour and draws.random() < (0.5 if before == "the" else 0.15):
        return with_article(before, " ".join(filter(None, (size, noun, "in", colour))))
    return with_article(before, " ".join(filter(None, (size, colour, noun))))


def with_article(before: str, rest: str) -> str:
    if before in ("a", "an"):
        before = "an" if rest[0] in "aeiou8" and not rest.startswith("one") else "a"
    return f"{before} {rest}".strip()


def with_background(text: str, background: str | None, draws: np.random.Generator, may_lead: bool = True) -> str:
    """Add the background, at the end or in front, or "a picture of", or nothing."""
    if background is None:
        return f"{pick(draws, PICTURES)} {text}" if may_lead and draws.random() < SHARE_OF_PICTURES else text
    word = colour_word(background, draws)
    if may_lead and draws.random() < 0.15:
        return fix_articles(pick(draws, BACKGROUNDS_FIRST).format(word, text))
    text = f"{text} {fix_articles(pick(draws, BACKGROUNDS).format(word))}"
    return f"{pick(draws, PICTURES)} {text}" if may_lead and draws.random() < SHARE_OF_PICTURES else text


def fix_articles(text: str) -> str:
    return text.replace("a orange background", "an orange background")


def colour_word(colour: str, draws: np.random.Generator) -> str:
    return pick(draws, COLOURS.get(colour, (colour,)))


def pick(draws: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(draws.integers(len(choices)))]


def words_of(text: str) -> set[str]:
    """The words of a text as they are looked up in ``KNOWN_WORDS``: letters, digits and hyphens, in lower case."""
    return set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower()))


def known_words() -> tuple[str, ...]:
    """All words of all sentences, sorted."""
    nouns = [" ".join(noun) for kind in NOUNS.values() for noun in kind]
    tables = (COLOURS, SIZES, POSITIONS, RELATIONS)
    phrases = [phrase for table in tables for choices in table.values() for phrase in choices]
    lists = [*BACKGROUNDS, *BACKGROUNDS_FIRST, *PICTURES, *JOINED, TAGGED_BACKGROUND, "a", "an", "in"]
    unnamed = [" ".join(noun) for noun in UNNAMED]
    return tuple(sorted(words_of(" ".join([*nouns, *unnamed, *phrases, *lists, *world.COLOURS]))))
