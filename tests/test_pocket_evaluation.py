"""Proves how the pocket model is judged: what sentences ask for is held against what was read of pictures, by
hand-worked cases; and requests for held-out combinations name them."""

from __future__ import annotations

import pytest

from training.stable_diffusion.pocket.captions import Said, Statement
from training.stable_diffusion.pocket.evaluation.facts import check, count
from training.stable_diffusion.pocket.evaluation.requests import draw_requests
from training.stable_diffusion.pocket.world import Scene, Thing, is_held_out

RED_SNEAKER = Thing("sneaker", "red", "small", "top left")
ON_WHITE = Scene((RED_SNEAKER,), "white")
SEVEN, BAG = Thing("seven", "blue", None, "left"), Thing("bag", "green", None, "right")
PAIR = Scene((SEVEN, BAG), "black")


@pytest.mark.parametrize(
    ("statement", "read", "expected"),
    [
        (Statement((Said("sneaker", "red"),), "white"), ON_WHITE, "number+ background+ thing+ colour+"),
        (Statement((Said("sneaker", "blue"),), "grey"), ON_WHITE, "number+ background- thing+ colour-"),
        (Statement((Said("bag", "red", "large", "left"),)), ON_WHITE, "number+ thing- colour+ position- size-"),
        (Statement((Said(colour="red"),)), ON_WHITE, "number+ colour+"),
        (Statement((Said("bag"),)), PAIR, "number- thing+"),
        (Statement((Said("bag", "green"), Said("seven", "blue"))), PAIR, "number+ thing+ colour+ thing+ colour+"),
        (
            Statement((Said("bag", relation="right"), Said("seven", relation="left"))),
            PAIR,
            "number+ " + "thing+ position+ " * 2,
        ),
        (Statement((Said("bag", position="left"), Said("seven"))), PAIR, "number+ thing+ position- thing+"),
        # Each thing counts once, and kinds decide before colours.
        (Statement((Said("bag"), Said("bag"))), PAIR, "number+ thing+ thing-"),
        (Statement((Said("seven", "green"), Said("bag", "blue"))), PAIR, "number+ thing+ colour- thing+ colour-"),
        (Statement((Said("sneaker", "red"), Said("bag", "red"))), ON_WHITE, "number- thing+ colour+ thing- colour-"),
        (Statement((), "white"), ON_WHITE, "background+"),
    ],
)
def test_facts(statement: Statement, read: Scene, expected: str) -> None:
    facts = [f"{fact.name}{'+' if fact.holds else '-'}" for fact in check(statement, read)]
    assert sorted(facts) == sorted(expected.split())


def test_facts_are_counted_by_name() -> None:
    counted = count(
        [*check(Statement((Said("sneaker", "blue"),)), ON_WHITE), *check(Statement((Said("bag"),)), ON_WHITE)]
    )
    assert {name: (each.hits, each.count) for name, each in counted.items()} == {
        "thing": (1, 2),
        "number": (2, 2),
        "colour": (0, 1),
    }


def test_a_sentence_holds_of_its_own_scene() -> None:
    for request in draw_requests(400, seed=0):
        assert all(fact.holds for fact in check(request.caption.statement, request.scene)), request


def test_half_of_the_requests_are_of_held_out_combinations_and_say_so() -> None:
    requests = draw_requests(200, seed=0)
    assert sum(request.held_out for request in requests) == 100
    for request in requests:
        statement, background = request.caption.statement, request.scene.background
        named = [said for said in statement.things if said.kind and said.colour and statement.background]
        assert named or not request.held_out
        for said in named:
            assert is_held_out(str(said.kind), str(said.colour), background) == request.held_out
    assert requests == draw_requests(200, seed=0)
    assert requests != draw_requests(200, seed=1)
