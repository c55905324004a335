"""The judge of the pocket model: a small network that reads a picture back into a scene.

It learns from scenes of real training images, held-out combinations too, takes no part in the training of what it
judges, and is itself judged on scenes of real test images.

Shapes: B batch, H = W = 64 pixels, K classes of a head.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training.checkpoint
from training import configuration
from training.arrays import UInt8
from training.classifier.model import Stage as Block
from training.precision import autocast
from training.randomness import generator
from training.stable_diffusion.pocket import checkpoint
from training.stable_diffusion.pocket.ahead import Ahead
from training.stable_diffusion.pocket.autoencoder import to_input, to_pixels
from training.stable_diffusion.pocket.config import IMAGE_SIZE, JudgeNetwork, JudgeTraining, TrainConfig
from training.stable_diffusion.pocket.reading import SCENE_HEADS, Heads, classes_of, head_losses, scene_of
from training.stable_diffusion.pocket.scenes import draw_scenes
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import Scene

SHARE_HELD_OUT = 0.2
NOISE = 0.04  # standard deviation, in a range of 2: what is drawn is not as clean as what is rendered
READ_AT_ONCE = 64
PREVIEWED, PREVIEWED_IN_A_ROW = 48, 16


class Judge(nn.Module):
    """Reads pictures: one row of logits for each head."""

    def __init__(self, config: JudgeNetwork) -> None:
        super().__init__()
        channels = [3, *(config.features * 2**level for level in range(config.levels))]
        self.blocks = nn.ModuleList(Block(before, after) for before, after in itertools.pairwise(channels))
        side = IMAGE_SIZE >> config.levels
        self.hidden = nn.Linear(channels[-1] * side**2, config.hidden)
        self.heads = Heads(config.hidden, SCENE_HEADS)

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        """Pictures in [-1, 1], float32 (B, 3, H, W) -> logits (B, K) by head."""
        x = sample
        for block in self.blocks:
            x = F.max_pool2d(block(x), 2)
        hidden = F.relu(self.hidden(x.flatten(1)))  # not averaged over the picture: places count
        logits: dict[str, Tensor] = self.heads(hidden)
        return logits

    @torch.no_grad()
    def read(self, pictures: UInt8) -> list[Scene]:
        """Pictures, uint8 (N, 64, 64, 3), as scenes."""
        device = self.hidden.weight.device
        found: list[Scene] = []
        for part in to_input(pictures).split(READ_AT_ONCE):
            chosen = {name: logits.argmax(1).tolist() for name, logits in self(part.to(device)).items()}
            found += [scene_of({name: chosen[name][i] for name in SCENE_HEADS}) for i in range(len(part))]
        return found


class JudgeStage:
    """Learning to read scenes."""

    name = "judge"

    def __init__(self, config: TrainConfig, sources: Sources, device: torch.device, folder: Path) -> None:
        self.shares: dict[str, float] = {}
        self.config, self.device, self.optimizer = config, device, config.judge.optimizer
        torch.manual_seed(config.seed)
        self.network = Judge(config.judge.network)
        size = self.optimizer.batch_size
        self.drawn = Ahead(lambda step: draw_scenes(sources, config.seed, "judge", step, size, SHARE_HELD_OUT))
        self.sources, self.inputs = sources, sources.sha256
        self.file = folder / checkpoint.JUDGE_NAME

    def sections(self, config: TrainConfig) -> tuple[JudgeTraining, JudgeNetwork]:
        """The two parts of a configuration that this stage depends on: its training and its network."""
        return config.judge, config.judge.network

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The sum of all heads' cross-entropies, and each of them."""
        scenes, pictures = self.drawn(step)
        sample = to_input(pictures)
        sample = sample + NOISE * torch.randn(sample.shape, generator=generator(self.config.seed, "judge-noise", step))
        with autocast(self.device, self.config.mixed_precision):
            logits = {name: each.float() for name, each in self.network(sample.to(self.device)).items()}
        losses = head_losses(logits, [classes_of(scene) for scene in scenes])
        return torch.stack(list(losses.values())).sum(), {name: loss.item() for name, loss in losses.items()}

    def preview(self, average: Judge) -> Tensor:
        """Scenes that were read wrongly in any way: uint8 (3, H rows, W columns); dark where there are fewer."""
        scenes, pictures = draw_scenes(self.sources, self.config.seed, "judge-preview", 0, 512)
        wrong = [i for i, read in enumerate(average.read(pictures)) if read != scenes[i]][:PREVIEWED]
        shown = to_input(pictures[wrong])
        shown = F.pad(shown, (0, 0, 0, 0, 0, 0, 0, PREVIEWED - len(wrong)), value=-1)
        rows: Tensor = to_pixels(shown).unflatten(0, (-1, PREVIEWED_IN_A_ROW))
        return rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)

    def publish(self, average: Judge, metadata: dict[str, str]) -> None:
        """Write the judge once it has learned all it will."""
        if int(metadata["step"]) == self.optimizer.steps:
            training.checkpoint.write(self.file, checkpoint.JUDGE, dict(average.state_dict()), metadata)


def own_config(text: str) -> JudgeTraining:
    """The judge's part of a ``TrainConfig`` in JSON; the others may be of another version.

    Raises:
        ValueError, KeyError, TypeError: there is none.
    """
    return configuration.build(JudgeTraining, json.loads(text)["judge"])


def load_judge(path: Path) -> Judge:
    """Open a judge, whose file says of how all is trained; only what is its own counts here.

    Raises:
        CheckpointError: not there, damaged, of another kind, or its tensors do not fit its configuration.
    """
    judge, _, _ = training.checkpoint.open_model(
        path, checkpoint.JUDGE, own_config, lambda config: Judge(config.network)
    )
    return judge
