"""Proves the judge of the pocket model: a scene and its classes say the same, and the network learns to read scenes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data import Dataset
from training.errors import CheckpointError
from training.stable_diffusion.pocket.config import JudgeNetwork, OptimizerConfig, pocket
from training.stable_diffusion.pocket.judge import Judge, JudgeStage, load_judge
from training.stable_diffusion.pocket.reading import ABSENT, SCENE_HEADS, classes_of, head_losses, scene_of
from training.stable_diffusion.pocket.scenes import draw_scenes
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.train import Run, Trainer
from training.stable_diffusion.pocket.world import Scene, Thing, draw_scene, is_held_out

STEPS = 80

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sources() -> Sources:
    """Things that any network can tell from each other: bars of a height that goes with their label."""
    labels = np.arange(20, dtype=np.uint8) % 10
    images = np.zeros((20, 1, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 : 6 + 2 * label, 4:24] = 255
    dataset = Dataset("bars", images, labels, sha256="of these bars")
    return Sources.from_datasets(dataset, dataset)


@pytest.fixture(scope="module")
def folder(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose judge has learned."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("judge")
    network = JudgeNetwork(features=4, levels=3, hidden=64)
    optimizer = OptimizerConfig(STEPS, 32, 3e-3, 5, 20, ema_decay=0.8)
    config = dataclasses.replace(
        pocket(), judge=dataclasses.replace(pocket().judge, optimizer=optimizer, network=network)
    )
    assert Trainer(JudgeStage(config, sources, torch.device("cpu"), path), Run(path, progress=False)).run()
    return path


def test_a_scene_and_its_classes_say_the_same() -> None:
    draws = np.random.default_rng(0)
    for _ in range(300):
        scene = draw_scene(draws)
        classes = classes_of(scene)
        assert scene_of({name: max(0, number) for name, number in classes.items()}) == scene
        absent = {name for name, number in classes.items() if number == ABSENT}
        assert absent == ({"size"} if len(scene.things) == 2 else {"kind_2", "colour_2"})


def test_every_head_has_its_classes() -> None:
    with torch.no_grad():
        logits = Judge(pocket().judge.network)(torch.zeros(2, 3, 64, 64))
    assert {name: each.shape for name, each in logits.items()} == {
        name: (2, len(SCENE_HEADS[name])) for name in SCENE_HEADS
    }


def test_held_out_combinations_are_among_its_scenes(sources: Sources) -> None:
    def held_out(share: float) -> float:
        scenes, _ = draw_scenes(sources, 0, "test", 0, 200, share)
        return float(np.mean([is_held_out(s.things[0].kind, s.things[0].colour, s.background) for s in scenes]))

    assert held_out(0.0) == 0
    assert 0.3 < held_out(0.5) < 0.7
    assert held_out(1.0) == 1


@pytest.mark.slow
def test_it_learns_to_read_scenes_it_has_not_seen(folder: Path, sources: Sources) -> None:
    scenes, pictures = draw_scenes(sources, 1, "test", 0, 200)
    read = load_judge(folder / "judge.safetensors").read(pictures)
    backgrounds = [asked.background == found.background for asked, found in zip(scenes, read, strict=True)]
    assert np.mean(backgrounds) > 0.3  # one in eleven by luck


@pytest.mark.slow
def test_the_loss_names_what_it_is_made_of(sources: Sources, folder: Path) -> None:
    stage = JudgeStage(pocket(), sources, torch.device("cpu"), folder)
    loss, parts = stage.loss(0)
    assert parts.keys() == SCENE_HEADS.keys()
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)
    for name, part in parts.items():
        assert part == pytest.approx(math.log(len(SCENE_HEADS[name])), rel=0.2), name  # it knows nothing yet


def test_what_is_no_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; make one with: .* --stage judge"):
        load_judge(tmp_path / "judge.safetensors")


def test_a_head_that_nothing_is_said_of_has_no_loss_and_a_gradient() -> None:
    """A batch without pairs, say: what the optimizer keeps for the head is there all the same."""
    scene = Scene((Thing("bag", "red", "large", "centre"),), "white")
    logits = {name: torch.zeros(2, len(classes), requires_grad=True) for name, classes in SCENE_HEADS.items()}
    losses = head_losses(logits, [classes_of(scene)] * 2)
    assert losses["kind_2"].item() == 0
    assert losses["kind_1"].item() == pytest.approx(math.log(len(SCENE_HEADS["kind_1"])))
    torch.stack(list(losses.values())).sum().backward()
    assert all(each.grad is not None for each in logits.values())
