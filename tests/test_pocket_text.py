"""Proves of the text encoder's first lessons that each place behind a sentence speaks for a quarter of the picture,
that they leave out what is held out, and that they teach it to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.pocket.config import OptimizerConfig, TextTraining, pocket
from training.stable_diffusion.pocket.reading import QUARTER_HEADS, QUARTERS, classes_of_quarter
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.text import PREVIEWED, TextStage, classes_at, first_ends
from training.stable_diffusion.pocket.train import Run, Trainer
from training.stable_diffusion.pocket.world import KINDS, Scene, Thing, is_held_out

NO_SOURCES = Sources({}, "none are needed")
CPU = torch.device("cpu")


def stage_of(steps: int, batch: int, folder: Path) -> TextStage:
    optimizer = OptimizerConfig(steps, batch, 1e-3, 20, steps // 3, ema_decay=0.9, matrix_learning_rate=2e-3)
    return TextStage(dataclasses.replace(pocket(), text=TextTraining(optimizer)), NO_SOURCES, CPU, folder)


def test_the_first_end_is_behind_the_sentence() -> None:
    ids = tokens.encode(["a red sneaker", "", "the digit seven in yellow on blue"])
    ends = first_ends(ids)
    assert ends.tolist() == [4, 1, 8]
    assert (ids[range(3), ends] == tokens.END).all()
    assert (ids[range(3), ends - 1] != tokens.END).all()


def test_what_is_held_out_is_never_read(tmp_path: Path) -> None:
    scenes, captions = stage_of(60, 2, tmp_path).sentences("text", 0, 500)
    assert len({caption.text for caption in captions}) > 400
    assert not any(
        is_held_out(thing.kind, thing.colour, scene.background) for scene in scenes for thing in scene.things
    )


def test_a_quarter_shows_the_thing_that_is_nearer() -> None:
    zero, bag = Thing("zero", "yellow", None, "left"), Thing("bag", "blue", None, "right")
    boot = Thing("ankle boot", "red", "small", "top left")
    beside = Scene((zero, bag), "black")
    above = Scene((dataclasses.replace(zero, position="top"), dataclasses.replace(bag, position="bottom")), "black")
    assert QUARTERS == ("top left", "top right", "bottom left", "bottom right")
    for scene, kinds in (
        (beside, ("zero", "bag", "zero", "bag")),
        (above, ("zero", "zero", "bag", "bag")),
        (Scene((boot,), "white"), ("ankle boot",) * 4),
    ):
        shown = [classes_of_quarter(scene, quarter) for quarter in range(4)]
        assert tuple(KINDS[each["kind"]] for each in shown) == kinds
        assert [each["quarter"] for each in shown] == [0, 1, 2, 3]
        assert len({(each["layout"], each["background"], each["size"]) for each in shown}) == 1


def test_places_speak_for_the_quarters_in_turn() -> None:
    scene = Scene((Thing("zero", "yellow", None, "left"), Thing("bag", "blue", None, "right")), "black")
    classes = classes_at([scene] * 5, torch.tensor([8, 9, 10, 11, 76]))
    assert [KINDS[each["kind"]] for each in classes] == ["zero", "bag", "zero", "bag", "zero"]


def test_every_head_has_its_loss(tmp_path: Path) -> None:
    loss, parts = stage_of(60, 64, tmp_path).loss(0)
    assert parts.keys() == QUARTER_HEADS.keys()
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)


@pytest.mark.slow
def test_it_learns_what_single_things_are(tmp_path: Path) -> None:
    """More than four of five, after a twentieth of the preset's lessons; pairs take the others."""
    stage = stage_of(250, 64, tmp_path)
    trainer = Trainer(stage, Run(tmp_path, progress=False))
    assert trainer.run()
    scenes, captions = stage.sentences("test", 0, PREVIEWED)
    ids = tokens.encode([caption.text for caption in captions])
    with torch.no_grad():
        read = trainer.average.module(ids, first_ends(ids))
    classes = classes_at(scenes, first_ends(ids))
    for name in ("kind", "colour"):
        right = [
            int(read[name][k].argmax()) == classes[k][name]
            for k, (scene, caption) in enumerate(zip(scenes, captions, strict=True))
            if len(scene.things) == 1 and caption.statement.things and getattr(caption.statement.things[0], name)
        ]
        assert len(right) > 100
        assert sum(right) / len(right) > 0.8, name
