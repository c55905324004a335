"""Proves the pocket model's world: scenes repeat from their seed, held-out combinations never enter training, pictures
show what their scene says, and no caption says anything untrue. A reader of captions of its own, below, shares no code
with their writer."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import numpy.typing as npt
import pytest

from training import data
from training.data import Dataset
from training.errors import DataError
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.pocket.captions import Said, Statement, describe, known_words, sentence, words_of
from training.stable_diffusion.pocket.config import IMAGE_SIZE
from training.stable_diffusion.pocket.evaluation.negatives import attributes, open_attributes, with_attribute
from training.stable_diffusion.pocket.evaluation.requests import draw_requests
from training.stable_diffusion.pocket.render import Picture, render
from training.stable_diffusion.pocket.scenes import draw_scenes
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import (
    COLOURS,
    DIGITS,
    GARMENTS,
    KINDS,
    SHARE_HELD_OUT,
    Scene,
    Thing,
    draw_scene,
    is_held_out,
)

SCENES = 3000


def blobs(labels: int, seed: int, name: str) -> Dataset:
    """Grey pictures whose thing is a bright box, two of each label, every one different."""
    draws = np.random.default_rng(seed)
    images = np.zeros((2 * labels, 1, 28, 28), np.uint8)
    for image in images:
        top, left = draws.integers(0, 8, 2)
        image[0, top : top + 16, left : left + 14] = draws.integers(120, 256, (16, 14))
    return Dataset(name, images, np.arange(2 * labels, dtype=np.uint8) % labels, sha256=name)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources.from_datasets(blobs(10, 0, "garments"), blobs(10, 1, "digits"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    draws = np.random.default_rng(0)
    return [draw_scene(draws) for _ in range(SCENES)]


def test_the_same_seed_gives_the_same_scenes_and_another_one_others(sources: Sources) -> None:
    first, pictures = draw_scenes(sources, 7, "test", 3, 20)
    again, same = draw_scenes(sources, 7, "test", 3, 20)
    assert first == again
    assert (pictures == same).all()
    for seed, purpose, index in ((8, "test", 3), (7, "other", 3), (7, "test", 4)):
        assert draw_scenes(sources, seed, purpose, index, 20)[0] != first


def test_held_out_combinations_are_never_drawn_for_training(scenes: list[Scene]) -> None:
    drawn = {(thing.kind, thing.colour, scene.background) for scene in scenes for thing in scene.things}
    assert not any(is_held_out(*combination) for combination in drawn)


def test_only_held_out_combinations_are_drawn_for_testing_and_they_have_their_share() -> None:
    draws = np.random.default_rng(1)
    for scene in (draw_scene(draws, held_out=True) for _ in range(500)):
        assert all(is_held_out(thing.kind, thing.colour, scene.background) for thing in scene.things)
    combinations = [(k, c, b) for k in KINDS for c in COLOURS for b in COLOURS if c != b]
    share = sum(is_held_out(*combination) for combination in combinations) / len(combinations)
    assert abs(share - SHARE_HELD_OUT) < 0.02


def test_training_sees_every_kind_colour_and_background_by_itself(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == {scene.background for scene in scenes} == set(COLOURS)


def test_a_thing_never_has_the_colour_of_its_background(scenes: list[Scene]) -> None:
    assert all(thing.colour != scene.background for scene in scenes for thing in scene.things)


def nearest_colour(pixels: npt.NDArray[np.float64]) -> str:
    return min(COLOURS, key=lambda name: float(np.square(pixels - np.array(COLOURS[name])).sum()))


def middle(picture: Picture) -> tuple[float, float]:
    """Where the things' weight lies, as (row, column) from the centre."""
    rows, columns = np.indices(picture.alpha.shape)
    weight = picture.alpha / picture.alpha.sum()
    return float((rows * weight).sum()) - 31.5, float((columns * weight).sum()) - 31.5


def test_pictures_have_the_colours_of_their_scene(sources: Sources) -> None:
    draws = np.random.default_rng(2)
    for _ in range(200):
        scene = draw_scene(draws)
        picture = render(scene, sources, draws)
        pixels = picture.pixels.astype(np.float64)
        assert picture.pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert nearest_colour(pixels[picture.alpha == 0].mean(0)) == scene.background
        if len(scene.things) == 1:
            assert nearest_colour(pixels[picture.alpha == 1].mean(0)) == scene.things[0].colour


def test_things_are_where_their_scene_says(sources: Sources) -> None:
    draws = np.random.default_rng(3)
    for _ in range(300):
        scene = draw_scene(draws)
        if len(scene.things) == 2:
            continue
        row, column = middle(render(scene, sources, draws))
        words = scene.things[0].position.split()
        for offset, before, after in ((row, "top", "bottom"), (column, "left", "right")):
            assert (offset < -5) == (before in words), (scene, row, column)
            assert (offset > 5) == (after in words), (scene, row, column)


def test_two_things_touch_at_most(sources: Sources) -> None:
    """At their largest, and moved towards each other, they share two lines of pixels, where their edges are."""
    scene = Scene((Thing("bag", "red", None, "top"), Thing("pullover", "blue", None, "bottom")), "white")
    for seed in range(50):
        pixels = render(scene, sources, np.random.default_rng(seed)).pixels.astype(int)
        red, blue = pixels[..., 0] - pixels[..., 2] > 90, pixels[..., 2] - pixels[..., 0] > 90
        assert np.flatnonzero(red.any(1)).max() <= np.flatnonzero(blue.any(1)).min() + 1


def test_sizes_are_told_apart(sources: Sources) -> None:
    areas = {}
    for size in ("small", "medium", "large"):
        scene = Scene((Thing("bag", "red", size, "centre"),), "white")
        areas[size] = [render(scene, sources, np.random.default_rng(i)).alpha.sum() for i in range(30)]
    assert max(areas["small"]) < min(areas["medium"])
    assert max(areas["medium"]) < min(areas["large"])


def test_each_split_is_made_of_its_own_pictures(mnist_sample: dict[str, npt.NDArray[np.uint8]]) -> None:
    splits = []
    for split in ("train", "test"):
        images, labels = mnist_sample[f"x_{split}"], mnist_sample[f"y_{split}"]
        dataset = Dataset(split, images[:, None], labels, sha256=split)
        splits.append(Sources.from_datasets(dataset, dataset))
    train, test = ({image.tobytes() for images in s.images.values() for image in images} for s in splits)
    assert len(train) > len(test) > 0
    assert not train & test


@pytest.mark.slow
def test_sources_come_from_fashion_mnist_and_mnist(mnist_folder: object) -> None:
    garments, digits = data.load("fashion-mnist", "test"), data.load("mnist", "test")
    found = Sources.load("test").images
    assert set(found) == set(GARMENTS) | set(DIGITS)
    assert (found["bag"] == garments.images[garments.labels == 8, 0]).all()
    assert (found["seven"] == digits.images[digits.labels == 7, 0]).all()


def test_a_kind_without_pictures_is_said_in_one_line() -> None:
    with pytest.raises(DataError, match=r"^digits holds no picture with label 9, a nine$"):
        Sources.from_datasets(blobs(10, 0, "garments"), blobs(9, 1, "digits"))


# What words mean, for the reader below; longer phrases first where one holds another.
KIND_WORDS = {
    "t-shirt": "t-shirt",
    "tee": "t-shirt",
    "trousers": "trousers",
    "pants": "trousers",
    "pullover": "pullover",
    "sweater": "pullover",
    "jumper": "pullover",
    "dress": "dress",
    "sandal": "sandal",
    "sneaker": "sneaker",
    "trainer": "sneaker",
    "bag": "bag",
    "handbag": "bag",
    "boot": "ankle boot",
    **{name: name for name in DIGITS},
    **{str(value): name for name, value in DIGITS.items()},
}
COLOUR_WORDS = {**{name: name for name in COLOURS}, "gray": "grey", "violet": "purple"}
SIZE_WORDS = {
    "small": "small",
    "little": "small",
    "tiny": "small",
    "medium-sized": "medium",
    "large": "large",
    "big": "large",
}
ANY_COLOUR = "|".join(COLOUR_WORDS)
BACKGROUND = re.compile(
    rf"(?:^a |^an |on an? |against an? |in front of an? |\b)({ANY_COLOUR}) background(?: with)?|\bon ({ANY_COLOUR})\b"
)
PLACE = re.compile(
    r"(?:in|on|at) the (?:(top|upper|bottom|lower)(?: (left|right|part))?(?: corner)?|(left|right)(?: side)?|centre|"
    r"center|middle)\b"
)
RELATION = re.compile(r"\b(?:to the )?(left|right) of\b|\b(above|over|below|under)\b")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SAME = {"upper": "top", "lower": "bottom", "above": "top", "over": "top", "below": "bottom", "under": "bottom"}


def place_of(found: re.Match[str]) -> str:
    vertical, second, side = found.groups()
    words = [SAME.get(vertical, vertical) if vertical else None, second if second != "part" else None, side]
    return " ".join(word for word in words if word) or "centre"


def read(text: str) -> Statement:
    """What a caption says, found by looking for phrases."""
    background = None
    if found := BACKGROUND.search(text):
        background = COLOUR_WORDS[found[1] or found[2]]
        text = text[: found.start()] + " " + text[found.end() :]
    places = [place_of(found) for found in PLACE.finditer(text)]
    relation = RELATION.search(PLACE.sub(" ", text))
    tokens_left = re.findall(r"[a-z0-9-]+", PLACE.sub(" ", text))
    count = sum(word in KIND_WORDS for word in tokens_left)
    # The first thing ends where the two are joined.
    joined = re.split(
        r"\b(?:and|with|next to|(?:to the )?(?:left|right) of|above|over|below|under)\b", PLACE.sub(" ", text)
    )
    parts = [part for part in joined if words_of(part)] if count == 2 else [PLACE.sub(" ", text)]
    things = []
    for number, part in enumerate(parts):
        words = words_of(part)
        kinds, colours, sizes = (
            [table[word] for word in sorted(words) if word in table] for table in (KIND_WORDS, COLOUR_WORDS, SIZE_WORDS)
        )
        assert max(len(kinds), len(colours), len(sizes)) <= 1, (text, part)
        place = places[number] if number < len(places) else None
        related = None
        if relation and count == 2:
            first = relation[1] or SAME[relation[2]]
            related = first if number == 0 else OPPOSITE[first]
        said = Said(*(found[0] if found else None for found in (kinds, colours, sizes)), place, related)
        if said != Said():
            things.append(said)
    return Statement(tuple(things), background)


def holds(said: Said, thing: Thing) -> bool:
    return all(
        claim in (None, fact)
        for claim, fact in (
            (said.kind, thing.kind),
            (said.colour, thing.colour),
            (said.size, thing.size),
            (said.position, thing.position),
            (said.relation, thing.position),
        )
    )


def test_captions_say_what_they_claim_to_say_and_nothing_untrue(scenes: list[Scene]) -> None:
    draws = np.random.default_rng(4)
    for scene in scenes:
        caption = describe(scene, draws)
        assert read(caption.text) == caption.statement, caption
        assert caption.statement.background in (None, scene.background), (caption, scene)
        said = caption.statement.things
        orders = [scene.things, scene.things[::-1]]
        assert any(all(map(holds, said, order)) for order in orders), (caption, scene)
        assert len(said) == 2 or len(scene.things) == 1, (caption, scene)


def test_a_negative_sentence_says_all_that_the_prompt_says_and_one_thing_more() -> None:
    draws = np.random.default_rng(7)
    opened = set()
    for request in draw_requests(400, seed=0):
        if len(request.scene.things) == 2:
            continue
        prompt, names = request.caption.statement, open_attributes(request)
        assert "position" not in names or prompt.things[0].size != "large", "large things have no other place"
        for name in names:
            value = attributes(request.scene)[name]
            assert value is not None
            negative = read(sentence(with_attribute(prompt, name, value), draws))
            before, after = stated(prompt), stated(negative)
            assert before[name] is None, request.caption
            assert after == before | {name: value}, (request.caption, negative)
            opened.add(name)
    assert opened == {"colour", "background", "position", "size"}


def stated(statement: Statement) -> dict[str, str | None]:
    (said,) = statement.things
    return {**dataclasses.asdict(said), "background": statement.background}


def test_captions_use_all_the_known_words_and_no_others(scenes: list[Scene]) -> None:
    draws = np.random.default_rng(5)
    used = set().union(*(words_of(describe(scene, draws).text) for scene in scenes for _ in range(3)))
    assert used == set(known_words())


def test_articles_fit_the_word_after_them(scenes: list[Scene]) -> None:
    draws = np.random.default_rng(6)
    for scene in scenes:
        text = describe(scene, draws).text
        assert not re.search(r"\ba (?:[aeio]|8|upper)(?!ne\b)", text), text
        assert not re.search(r"\ban (?![aeio]|8|upper)|\ban one\b", text), text


def test_captions_are_padded_like_prompts_and_use_known_tokens_only(scenes: list[Scene]) -> None:
    draws = np.random.default_rng(7)
    ids = tokens.encode([describe(scene, draws).text for scene in scenes[:500]] + [""])
    assert ids.shape == (501, 77)
    assert (ids[:, 0] == 49406).all()
    assert (ids[:, -1] == 49407).all()
    assert set(ids.unique().tolist()) <= set(tokens.known_token_ids().tolist())
