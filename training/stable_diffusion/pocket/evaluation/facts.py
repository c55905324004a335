"""What a sentence asks for, held against what was read of the picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.classifier.agreement import Proportion
from training.stable_diffusion.pocket.captions import Said, Statement
from training.stable_diffusion.pocket.world import Scene, Thing

FACTS = ("thing", "number", "colour", "background", "position", "size")


@dataclass(frozen=True)
class Fact:
    """One thing that was asked for, and whether it is so.

    Attributes:
        name: one of ``FACTS``.
        holds: whether the picture shows it.
    """

    name: str
    holds: bool


def check(statement: Statement, read: Scene) -> list[Fact]:
    """Every fact of a sentence against what was read; what it leaves open is not checked.

    What it says of a thing is held against that thing in the picture which fits best, each against another.
    """
    facts = [Fact("number", len(statement.things) == len(read.things))] if statement.things else []
    if statement.background is not None:
        facts.append(Fact("background", statement.background == read.background))
    for said, thing in best_match(statement.things, read.things):
        facts += check_thing(said, thing)
    return facts


def best_match(things: Sequence[Said], read: Sequence[Thing]) -> list[tuple[Said, Thing | None]]:
    """Pairs of what was said and what was read with the most facts that hold, kinds before all others."""

    def fitness(pairs: Iterable[tuple[Said, Thing | None]]) -> tuple[int, int]:
        facts = [fact for said, thing in pairs for fact in check_thing(said, thing) if fact.holds]
        return sum(fact.name == "thing" for fact in facts), len(facts)

    padded = [*read, *[None] * (len(things) - len(read))]
    candidates = [list(zip(things, order, strict=False)) for order in itertools.permutations(padded, len(things))]
    return max(candidates, key=fitness)


def check_thing(said: Said, thing: Thing | None) -> list[Fact]:
    """The facts of one thing; none of them holds where there is none."""
    place = said.relation if said.position is None else said.position
    asked = {"thing": said.kind, "colour": said.colour, "position": place, "size": said.size}
    found = (
        {}
        if thing is None
        else {
            "thing": thing.kind,
            "colour": thing.colour,
            "position": thing.position,
            "size": thing.size,
        }
    )
    return [Fact(name, wanted == found.get(name)) for name, wanted in asked.items() if wanted is not None]


def count(facts: Iterable[Fact]) -> dict[str, Proportion]:
    """How many of each name hold, in the order of ``FACTS``; names that do not occur are left out."""
    found = list(facts)
    by_name = {name: [fact.holds for fact in found if fact.name == name] for name in FACTS}
    return {name: Proportion(sum(holds), len(holds)) for name, holds in by_name.items() if holds}
